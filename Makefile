# The cluster that the end-to-end tests run in: see tests/cluster/README.md.
.PHONY: cluster cluster-down e2e

cluster:
	tests/cluster/build.sh
	tests/cluster/up.sh

cluster-down:
	tests/cluster/down.sh

# SHORT=1: every experiment with short loads. ARGS='A C --columns ebbtide': some of them.
e2e: cluster
	SHORT=$(SHORT) python3 tests/cluster/e2e.py $(ARGS)
