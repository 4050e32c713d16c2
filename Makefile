.PHONY: image cluster cluster-down e2e

image: # target/ebbtide-image.tar, for `docker load`, `ctr images import`, `kind load image-archive`; no daemon needed
	binary=$$(deploy/build-static) && deploy/image.py "$$binary" target/ebbtide-image.tar

cluster: # a cluster of real parts on this machine: tests/cluster/README.md
	tests/cluster/build.sh
	tests/cluster/up.sh

cluster-down:
	tests/cluster/down.sh

e2e: cluster image # SHORT=1: short loads. ARGS='A C --columns ebbtide': some of the experiments
	SHORT=$(SHORT) python3 tests/cluster/e2e.py $(ARGS)
