# n2n: two edges and a supernode, its own cipher (Twofish: this version has no AES), routed, since bridged traffic would go
# through the supernode. MTU 1360: its default of 1400 makes two packets of each full one.
. "$(dirname "$0")/lib.sh"
start supernode "$A" supernode -l 7654
edge() { # NAME HOST ADDRESS PORT MAC
  start "$1" "$2" edge -d edge0 -a "$3" -s 255.255.255.0 -c bench -M 1360 -k benchkey1234 -l $UA:7654 -p "$4" -m "$5" -r
}
edge a "$A" 10.33.0.1 50001 02:00:00:00:0a:01
edge b "$B" 10.33.0.2 50002 02:00:00:00:0b:01
has_address() { in_ns "$1" sh -c 'ip -4 addr show edge0 | grep -q inet'; }
until_true has_address "$A"
until_true has_address "$B"
in_ns "$A" ip route add 10.32.2.0/24 via 10.33.0.2
in_ns "$B" ip route add 10.32.1.0/24 via 10.33.0.1
routed_containers 1360
# The edges find each other with the first packets.
until_true in_ns "$CA" ping -c 1 -W 1 10.32.2.2
sleep 2
stands
