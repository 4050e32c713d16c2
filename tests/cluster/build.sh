#!/bin/bash
# build.sh: builds everything that the lab needs into $LAB/bin and $LAB/images. Keeps what is already built.
# build.sh conformance: also Kubernetes' own tests of Services, and the images that they use.
# build.sh ingress: also the conformance suite of Ingress, and the image that it uses.
# build.sh gateway: also the Gateway API's conformance suite, and the images that it uses.
# build.sh peers: also Traefik and HAProxy, for experiment K.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

tools=(containerd runc iptables nft conntrack ipset modprobe pgrep openssl curl ip nsenter python3 redis-benchmark)
packages=(containerd runc containernetworking-plugins iptables nftables conntrack ipset kmod procps openssl curl iproute2 util-linux python3 redis-tools)
missing() { local t; for t in "${tools[@]}"; do command -v "$t" >/dev/null || echo "$t"; done; [ -x /usr/lib/cni/bridge ] || echo /usr/lib/cni/bridge; }
if [ "${1:-}" = peers ]; then
  tools+=(haproxy)
  packages+=(haproxy)
fi
if [ "${1:-}" = conformance ]; then
  tools+=(mmdebstrap busybox)
  packages+=(mmdebstrap busybox-static)
fi
if [ -n "$(missing)" ]; then
  command -v apt-get >/dev/null || die "missing: $(missing | paste -sd' '); install them with this system's package manager"
  echo "installing Debian packages for: $(missing | paste -sd' ')"
  # The lab starts its own containerd. Debian's must not start on the user's machine.
  policy=/usr/sbin/policy-rc.d
  [ -e $policy ] || { trap 'rm -f $policy' EXIT; printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
[ -z "$(missing)" ] || die "still missing after apt-get: $(missing | paste -sd' ')"
command -v go >/dev/null || die "needs Go 1.26 or newer to build Kubernetes $K8S_VERSION: https://go.dev/dl"

export GOFLAGS="-buildvcs=false -modcacherw" GOTOOLCHAIN=local CGO_ENABLED=0
mkdir -p "$LAB"/{bin,build,images,logs}
ld="-s -w"
# Without these, a module build reports version v0.0.0.
for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  ld="$ld -X $p.gitVersion=$K8S_VERSION -X $p.gitMajor=1 -X $p.gitMinor=35 -X $p.gitTreeState=clean"
  ld="$ld -X $p.gitCommit=0000000000000000000000000000000000000000 -X $p.buildDate=2026-01-01T00:00:00Z"
done
echo "building Kubernetes $K8S_VERSION, etcd, fortio $FORTIO_VERSION (about 4 minutes the first time, seconds after that)"
(cd "$HERE/src/k8s" && go build -trimpath -ldflags "$ld" -o "$LAB/bin/hyperkube" ./hyper)
for c in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do ln -sfn hyperkube "$LAB/bin/$c"; done
(cd "$HERE/src/etcd" && go build -trimpath -ldflags "-s -w" -o "$LAB/bin/etcd" go.etcd.io/etcd/server/v3)
(cd "$HERE/src/dns" && go build -trimpath -ldflags "-s -w" -o "$LAB/build/coredns" .)
[ -x "$LAB/bin/fortio" ] || GOBIN=$LAB/bin go install -trimpath -ldflags "-s -w" "fortio.org/fortio@$FORTIO_VERSION"
for p in app pause; do (cd "$HERE/src/$p" && go build -trimpath -ldflags "-s -w" -o "$LAB/build/$p" .); done

image_as() { python3 "$HERE/mkimage.py" "$LAB/images/${1//[\/:]/-}.tar" "$@"; }
image() { image_as "lab.local/$1" "${@:2}"; }
image pause:1 --entry /main "$LAB/build/pause=/main"
image coredns:1 --entry /coredns "$LAB/build/coredns=/coredns"
for v in v1 v2 v3; do image app:$v --env VERSION=$v --entry /main "$LAB/build/app=/main"; done
image app:never-ready --env VERSION=never-ready --env NEVER_READY=1 --entry /main "$LAB/build/app=/main"
# gRPC: its server answers Ping, and exits at SIGTERM.
for v in v1 v2; do image fortio:$v --env VERSION=$v --entry /fortio --entry server --entry=-http-port --entry 8080 --entry=-grpc-port --entry 8079 "$LAB/bin/fortio=/fortio"; done

# The kinds of the Gateway API.
[ -d "$LAB/gateway/crds" ] || (
  module=$(cd "$HERE/src/gateway" && go mod download -json sigs.k8s.io/gateway-api | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')
  install -m 644 -D -t "$LAB/gateway/crds" "$module"/config/crd/experimental/gateway.networking.k8s.io_*s.yaml
  rm -f "$LAB"/gateway/crds/*_vap_*
)

# Debian's nginx, unpacked but not installed, with the libraries that it is linked to.
if ! [ -x "$LAB/nginx/usr/sbin/nginx" ]; then
  rm -rf "$LAB/nginx" && mkdir -p "$LAB/nginx" && cd "$LAB/nginx"
  command -v apt-get >/dev/null || die "nginx comes from Debian's package: needs apt-get"
  apt-get download -qq nginx 2>/dev/null || { apt-get update -qq && apt-get download -qq nginx; } || die "cannot download Debian's nginx: is the package mirror reachable?"
  dpkg -x nginx_*.deb . && rm nginx_*.deb
  [ -x usr/sbin/nginx ] || die "this distribution's package nginx has no /usr/sbin/nginx: use Debian 12 or newer"
fi
libraries() { ldd "$1" | awk '$2 == "=>" {print $3 "=" $3} $1 ~ /^\// {print $1 "=" $1}'; }
! ldd "$LAB/nginx/usr/sbin/nginx" | grep 'not found' || die "nginx lacks libraries on this machine; install their packages"
files=$(libraries "$LAB/nginx/usr/sbin/nginx")
for v in v1 v2 v3; do
  mkdir -p "$LAB/nginx/$v"
  echo "$v" >"$LAB/nginx/$v/index.html"
  # shellcheck disable=SC2086  # one argument for each library
  image nginx:$v --entry /usr/sbin/nginx --entry=-c --entry /nginx.conf "$LAB/nginx/usr/sbin/nginx=/usr/sbin/nginx" $files \
    "$HERE/src/nginx/nginx.conf=/nginx.conf" "$HERE/src/nginx/passwd=/etc/passwd" "$HERE/src/nginx/group=/etc/group" "$LAB/nginx/$v/index.html=/www/index.html"
done

# Debian's PostgreSQL, unpacked as well, with an empty database that everybody may enter. The server does not run
# as root, and the folders of $LAB may be root's alone.
pg=usr/lib/postgresql/15
if ! [ -s "$LAB/postgres/rootfs.tar" ]; then
  mkdir -p "$LAB/postgres" && cd "$LAB/postgres"
  apt-get download -qq postgresql-15 postgresql-client-15 2>/dev/null || { apt-get update -qq && apt-get download -qq postgresql-15 postgresql-client-15; } || die "cannot download Debian's PostgreSQL 15: use Debian 12"
  root=$(mktemp -d)
  for p in postgresql*.deb; do dpkg -x "$p" "$root" && rm "$p"; done
  ! ldd "$root/$pg/bin/postgres" "$root/$pg/bin/pgbench" | grep 'not found' || die "PostgreSQL lacks libraries on this machine; install their packages"
  rm -rf "$root/$pg/lib/bitcode" "$root"/$pg/lib/llvmjit* "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/locale"
  mkdir "$root/data" "$root/tmp" "$root/etc/" -p
  echo 'nobody:x:65534:65534::/:/bin/false' >"$root/etc/passwd"
  chown 65534:65534 "$root/data" && chmod 755 "$root"
  (cd "$root" && setpriv --reuid 65534 --regid 65534 --clear-groups "$pg/bin/initdb" -D data -U postgres -A trust --no-locale -N >/dev/null)
  echo 'host all all 0.0.0.0/0 trust' >>"$root/data/pg_hba.conf"
  printf "listen_addresses = '*'\nunix_socket_directories = ''\nfsync = off\ntimezone = 'GMT'\nlog_timezone = 'GMT'\n" >>"$root/data/postgresql.conf"
  cp "$root/$pg/bin/pgbench" .
  tar -C "$root" --numeric-owner -cf rootfs.tar . && rm -rf "$root"
fi

# One program does all of redis: under this name it is the server.
# shellcheck disable=SC2046  # one argument for each library
image redis:7 --entry /redis-server --entry=--protected-mode --entry no --entry=--save --entry '' /usr/bin/redis-check-rdb=/redis-server $(libraries /usr/bin/redis-check-rdb)
[ -s "$LAB/images/lab.local-postgres-15.tar" ] || (
  root=$(mktemp -d) && trap 'rm -rf "$root"' EXIT && tar -C "$root" -xf "$LAB/postgres/rootfs.tar"
  # shellcheck disable=SC2046
  image postgres:15 --base "$LAB/postgres/rootfs.tar" --entry "/$pg/bin/postgres" --entry=-D --entry /data $(libraries "$root/$pg/bin/postgres")
)
if [ "${1:-}" = ingress ]; then
  suite=$LAB/ingress-suite
  [ -d "$suite" ] || git clone -q https://github.com/kubernetes-sigs/ingress-controller-conformance "$suite"
  [ -x "$LAB/bin/ingress-conformance" ] || (cd "$suite" && nice go test -c -mod=mod -trimpath -o "$LAB/bin/ingress-conformance" .)
  (cd "$suite" && go build -mod=mod -trimpath -ldflags "-s -w" -o "$LAB/build/echoserver" ./images/echoserver)
  image_as k8s.gcr.io/ingressconformance/echoserver:v0.0.1 --entry /echoserver "$LAB/build/echoserver=/echoserver"
fi
echo "built into $LAB"

# Built once: even a relink takes 10 s. Who changes one of these deletes it.
once() { [ -x "$1" ] || nice go "$2" -trimpath -o "$1" "${@:3}"; }

if [ "${1:-}" = gateway ]; then
  echo "building the Gateway API's conformance suite (about 3 minutes the first time)"
  cd "$HERE/src/gateway"
  once "$LAB/gateway/gateway.test" test -c .
  once "$LAB/build/echo-basic" build -ldflags "-s -w" sigs.k8s.io/gateway-api/conformance/echo-basic
  # The names are those that the suite asks for.
  in_gateway() { python3 "$HERE/mkimage.py" "$LAB/gateway/${1//[\/:]/-}.tar" "$@"; }
  for tag in v1.5.1 v1.6.0-dev.2 v1.6.0-dev.3; do
    in_gateway registry.k8s.io/gateway-api/echo-basic:$tag --entry /echo-basic "$LAB/build/echo-basic=/echo-basic"
  done
  in_gateway registry.k8s.io/coredns/coredns:v1.12.2 --entry /coredns "$LAB/build/coredns=/coredns"
fi
if [ "${1:-}" = peers ] && ! [ -x "$LAB/build/traefik" ]; then
  echo "building Traefik (about 4 minutes)"
  cd "$HERE/src/traefik"
  # lego brings a client for each of 200 DNS providers. None is of use here, and not each can be had.
  lego=$(go mod download -json github.com/go-acme/lego/v4@v4.33.0 | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')
  rm -rf "$LAB/build/lego" && cp -r "$lego" "$LAB/build/lego" && chmod -R u+w "$LAB/build/lego"
  cp providers.go.txt "$LAB/build/lego/providers/dns/zz_gen_dns_providers.go"
  cp go.mod "$LAB/build/traefik.mod" && cp go.sum "$LAB/build/traefik.sum"
  go mod edit -replace "github.com/go-acme/lego/v4=$LAB/build/lego" "$LAB/build/traefik.mod"
  nice go build -mod=mod -modfile "$LAB/build/traefik.mod" -trimpath -ldflags "-s -w" -o "$LAB/build/traefik" github.com/traefik/traefik/v3/cmd/traefik
fi
[ "${1:-}" = conformance ] || exit 0
echo "building Kubernetes' tests of Services and their images (about 3 minutes the first time)"
cd "$HERE/src/k8s"
once "$LAB/bin/e2e.test" test -c -ldflags "$ld" ./e2e
once "$LAB/bin/ginkgo" build -ldflags "-s -w" github.com/onsi/ginkgo/v2/ginkgo
for p in agnhost regression-issue-74839; do once "$LAB/build/$p" build -ldflags "-s -w" k8s.io/kubernetes/test/images/$p; done
# The tests run these tools in the pods of agnhost.
[ -s "$LAB/build/rootfs.tar" ] || nice mmdebstrap --quiet --variant=essential --mode=root \
  --include=curl,netcat-openbsd,wget,bind9-dnsutils,iproute2,iptables,conntrack,procps \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$LAB/build/rootfs.tar"
# The names are those that the tests ask for. The kubelet does not pull what is there.
registry=registry.k8s.io/e2e-test-images
image_as registry.k8s.io/pause:3.10.1 --entry /main "$LAB/build/pause=/main"
image_as $registry/regression-issue-74839:1.4 --entry /main "$LAB/build/regression-issue-74839=/main"
# wgetrc: the tests expect a wget that tries once, and Debian's tries 20 times.
image_as $registry/agnhost:$AGNHOST --base "$LAB/build/rootfs.tar" --entry /agnhost --link agnhost=/agnhost-2 "$LAB/build/agnhost=/agnhost" "$HERE/src/wgetrc=/etc/wgetrc"
links=$(busybox --list | grep -v '^busybox$' | sed 's|.*|--link=busybox=/bin/&|')
# shellcheck disable=SC2086  # one argument for each link
image_as $registry/busybox:$BUSYBOX $links "$(command -v busybox)=/bin/busybox"
