module ebbtide.dev/cluster/app

go 1.26
