# fastd: TAP, salsa2012+umac as its manual recommends, MTU by its manual's formula (1500 - 28 - 24 - 14).
. "$(dirname "$0")/lib.sh"
for side in a b; do
  fastd --generate-key --machine-readable >$side.secret
  echo "secret \"$(cat $side.secret)\";" >$side.key.conf
  fastd --config $side.key.conf --show-key --machine-readable >$side.pub
done
config() { # OWN OWN_ADDRESS OTHER [OTHER_ADDRESS]
  cat <<EOF
log level info;
mode tap;
interface "fastd0";
method "salsa2012+umac";
bind $2:10000;
mtu 1434;
secret "$(cat "$1.secret")";
peer "$3" {
  key "$(cat "$3.pub")";
  ${4:+remote $4:10000;}
}
EOF
}
config a $UA b $UB >a.conf
config b $UB a >b.conf
# One side connects, to a side that listens already: handshakes that cross or find nobody are repeated only after 20 s.
start b "$B" fastd --config b.conf
until_true grep -q 'bound to' b.log
until_true has_device "$B" fastd0
bridged "$B" "$CB" 10.32.0.2/24 fastd0 1434
start a "$A" fastd --config a.conf
until_true has_device "$A" fastd0
bridged "$A" "$CA" 10.32.0.1/24 fastd0 1434
until_true grep -q established a.log
until_true grep -q established b.log
stands
