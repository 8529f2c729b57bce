# nebula: AES, MTU 1300 as in its example configuration, no lighthouse between two hosts that know each other.
. "$(dirname "$0")/lib.sh"
nebula-cert ca -name bench -duration 8760h -out-crt ca.crt -out-key ca.key
nebula-cert sign -name a -ip 10.33.0.1/24 -subnets 10.32.1.0/24 -ca-crt ca.crt -ca-key ca.key -out-crt a.crt -out-key a.key
nebula-cert sign -name b -ip 10.33.0.2/24 -subnets 10.32.2.0/24 -ca-crt ca.crt -ca-key ca.key -out-crt b.crt -out-key b.key
config() { # OWN OTHER_TUNNEL_ADDRESS OTHER_ADDRESS ROUTE
  cat <<EOF
pki: { ca: $PWD/ca.crt, cert: $PWD/$1.crt, key: $PWD/$1.key }
static_host_map:
  "$2": ["$3:4242"]
lighthouse: { am_lighthouse: false, hosts: [] }
listen: { host: 0.0.0.0, port: 4242 }
punchy: { punch: true }
cipher: aes
tun:
  dev: nebula1
  mtu: 1300
  tx_queue: 500
  unsafe_routes:
    - { route: $4, via: $2 }
logging: { level: info, format: text }
firewall:
  conntrack: { tcp_timeout: 12m, udp_timeout: 3m, default_timeout: 10m }
  outbound: [ { port: any, proto: any, host: any } ]
  inbound: [ { port: any, proto: any, host: any } ]
EOF
}
config a 10.33.0.2 $UB 10.32.2.0/24 >a.yml
config b 10.33.0.1 $UA 10.32.1.0/24 >b.yml
start a "$A" nebula -config a.yml
start b "$B" nebula -config b.yml
until_true has_device "$A" nebula1
until_true has_device "$B" nebula1
routed_containers 1300
stands
