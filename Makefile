.PHONY: image

image: # target/ebbtide-image.tar, for `docker load`, `ctr images import`, `kind load image-archive`; no daemon needed
	binary=$$(deploy/build-static) && deploy/image.py "$$binary" target/ebbtide-image.tar
