# `make` or `make help` lists the targets. `.ci/run` runs the gates among them in turn.
.PHONY: help build check fmt clippy doc test pictures report-picture demo seeds fuzz deny advisories bench scale \
	compare judges judges-more image release cluster cluster-down apiserver-scale apiserver-start e2e conformance-service conformance-ingress conformance-gateway

help: # this list
	@sed -nE 's/^([a-z0-9-]+):[^#]*# (.*)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS="$$(printf '\t')" read -r target text; do printf '%-16s%s\n' "$$target" "$$text"; done

build: # the program, as `cargo run --release` builds it: target/release/ebbtide
	cargo build --locked --release

check: fmt clippy doc # format, lints and documentation, without running a test

fmt: # the format alone; `cargo fmt` mends it
	cargo fmt --check

clippy: # the lints alone, of every target
	cargo clippy --locked --all-targets -- -D warnings

doc: # the documentation alone: each link must lead somewhere
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet

.PHONY: docs # `docs/` exists
docs: # the pages as a site: target/docs/index.html (mdBook, which cargo installs in a minute if it is not there)
	command -v mdbook >/dev/null || cargo install --locked --debug --no-default-features mdbook
	rm -rf target/docs-pages target/docs && mkdir -p target/docs-pages
	git ls-files -z | xargs -0 cp --parents --no-dereference -t target/docs-pages
	mv target/docs-pages/docs/book.toml target/docs-pages/
	@# There the table of contents is one folder higher than in the repository.
	sed 's#](\([a-z]\)#](docs/\1#; s#](../#](#' target/docs-pages/docs/SUMMARY.md >target/docs-pages/SUMMARY.md
	rm target/docs-pages/docs/SUMMARY.md
	mdbook build target/docs-pages

test: # every test, all of them even if one fails; EBBTIDE_SOAK=60s sets the length of the soak
	cargo test --locked --no-fail-fast -- --nocapture

pictures: # the admin page in some of its states, into DIR=/tmp/pictures (chromium); docs/pictures/ has two of them
	EBBTIDE_SHOTS=$(or $(DIR),/tmp/pictures) cargo test --locked --test proxy pictures -- --ignored

report-picture: # README's picture, from the demo's own report (chromium)
	cargo run --locked --release -- demo --report target/report.html
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1000,960 --screenshot=docs/pictures/report.png target/report.html

demo: # a rolling update with and without Ebbtide, for 10 seconds
	cargo run --locked --release -- demo --for 10s

seeds: # each seed of each fuzz target once, on the stable toolchain (a C++ compiler)
	fuzz/run.sh --seeds

fuzz: # random inputs, RUNS=20000 or TIME=600 (seconds) a target: fuzz/README.md (nightly, cargo-fuzz)
	fuzz/run.sh $(ARGS)

deny: # licences, sources and bans of every dependency, from deny.toml (cargo-deny)
	@# cargo-deny asks for every locked crate, those for other systems too.
	cargo fetch --locked --quiet
	cargo deny --offline --locked check licenses bans sources

advisories: # known faults of the dependencies; asks for the advisory database (cargo-deny)
	cargo deny --locked check advisories

bench: # the parts: merge, head, pick, route, plan and drain, with thin LTO; ARGS='--bench head' for one of them
	cargo bench --locked $(or $(ARGS),--bench merge --bench head --bench pick --bench route --bench plan --bench drain)

scale: # what it costs at 5,000 Services; rewrites a part of benches/README.md (unshare, ip; 5 minutes)
	cargo bench --locked --bench scale -- $(or $(ARGS),--write)

compare: # Ebbtide beside its peers; ARGS=--write rewrites benches/README.md (20 minutes)
	benches/compare/install.sh
	cargo bench --locked --bench compare -- $(ARGS)

judges: # suites of others for HTTP/2: h2spec, gRPC, clients; SHORT=1, ARGS=--write for tests/judges/RESULTS.md (Go; 4 minutes)
	cargo build --locked --release
	python3 tests/judges/judges.py $(if $(SHORT),--short) $(ARGS)
	$(if $(SHORT),,python3 tests/judges/clients.py $(ARGS))

judges-more: # suites of others that must be there: tlsfuzzer, testssl.sh, Autobahn; ARGS=--write (7 minutes)
	cargo build --locked --release
	python3 tests/judges/tls.py $(ARGS)
	python3 tests/judges/websocket.py $(ARGS)

image: # target/ebbtide-image.tar for `docker load` or `ctr images import`; needs no daemon
	binary=$$(deploy/build-static) && deploy/image.py "$$binary" target/ebbtide-image.tar

release: # all files of a release, for x86-64 and aarch64, into target/release-files (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross; 15 minutes)
	deploy/release.py target/release-files

cluster: # a cluster of real parts on this machine: tests/cluster/README.md (root, Go). NODES=1 for one node
	tests/cluster/build.sh
	tests/cluster/up.sh

cluster-down: # takes the cluster away again
	tests/cluster/down.sh

conformance-gateway: image # the Gateway API's own suite in the lab: docs/conformance (Go; 15 minutes). ARGS='-run-test NAME' for one of them
	tests/cluster/build.sh
	tests/cluster/build.sh gateway
	tests/cluster/up.sh
	python3 tests/cluster/gateway.py $(ARGS)

apiserver-scale: cluster # what many nodes cost an API server: writes tests/cluster/SCALE.md (10 minutes)
	cargo build --release --locked --example watchers
	python3 tests/cluster/scale.py

apiserver-start: cluster # how soon Ebbtide is ready at 5,000 Services and 100,000 pods: writes SCALE.md, ends the cluster (10 minutes)
	cargo build --release --locked
	python3 tests/cluster/start.py
	tests/cluster/down.sh

e2e: cluster image # the promise in that cluster; SHORT=1 for short loads, ARGS='A C --columns ebbtide'
	SHORT=$(SHORT) python3 tests/cluster/e2e.py $(ARGS)

conformance-service: image # Kubernetes' own tests of Services, in that cluster: writes tests/cluster/CONFORMANCE.md
	tests/cluster/build.sh conformance
	tests/cluster/up.sh
	SHORT=$(SHORT) FOCUS='$(FOCUS)' python3 tests/cluster/conformance.py $(ARGS)

conformance-ingress: image # the conformance suite of Ingress, in that cluster: writes tests/cluster/CONFORMANCE-INGRESS.md
	tests/cluster/build.sh ingress
	tests/cluster/up.sh
	python3 tests/cluster/ingress.py
