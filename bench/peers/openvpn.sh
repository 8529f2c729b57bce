# OpenVPN: two peers with TLS and fingerprints, AES-256-GCM, tun and MTU 1400 as in openvpn-examples(5); userspace only.
. "$(dirname "$0")/lib.sh"
openssl ecparam -name secp384r1 -out curve
for side in a b; do
  openssl req -x509 -newkey ec:curve -keyout $side.key -out $side.crt -nodes -sha256 -days 3650 -subj "/CN=$side" 2>/dev/null
  openssl x509 -fingerprint -sha256 -in $side.crt -noout | cut -d= -f2 >$side.fp
done
config() { # OWN OWN_ADDRESS OTHER OTHER_ADDRESS ROLE TUNNEL_ADDRESS OTHER_TUNNEL_ADDRESS ROUTE
  cat <<EOF
dev tun0
dev-type tun
proto udp4
local $2
remote $4
port 1194
disable-dco
$5
cert $1.crt
key $1.key
peer-fingerprint $(cat "$3.fp")
data-ciphers AES-256-GCM
ifconfig $6 $7
route $8 255.255.255.0
tun-mtu 1400
fast-io
keepalive 10 60
persist-tun
verb 3
EOF
}
config a $UA b $UB tls-server 10.33.0.1 10.33.0.2 10.32.2.0 >a.conf
echo 'dh none' >>a.conf
config b $UB a $UA tls-client 10.33.0.2 10.33.0.1 10.32.1.0 >b.conf
start a "$A" openvpn --config a.conf
start b "$B" openvpn --config b.conf
until_true grep -q 'Initialization Sequence Completed' a.log
until_true grep -q 'Initialization Sequence Completed' b.log
routed_containers 1400
stands
