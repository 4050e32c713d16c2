# The same image as `make image`, built with Docker (with BuildKit):
#   docker build --build-arg EBBTIDE_COMMIT=$(git rev-parse --short=9 HEAD) -t ebbtide:dev .
FROM rust:1.95-slim-bookworm AS build
ARG EBBTIDE_COMMIT
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    mkdir -p /image/etc && cp "$(deploy/build-static)" /image/ebbtide && \
    echo 'ebbtide:x:10901:10901:Ebbtide:/:/sbin/nologin' >/image/etc/passwd && \
    echo 'ebbtide:x:10901:' >/image/etc/group && \
    mkdir -m 1777 /image/tmp

# The image holds nothing else. It needs no shell. It needs no CA certificates, because Ebbtide
# speaks TLS only to the API server, and that CA comes with the service account.
FROM scratch
COPY --from=build /image/ /
LABEL org.opencontainers.image.title=ebbtide org.opencontainers.image.licenses=Apache-2.0
USER 10901:10901
ENTRYPOINT ["/ebbtide"]
CMD ["run"]
