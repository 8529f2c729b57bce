# wireguard-go: MTU 1420, its own default.
. "$(dirname "$0")/lib.sh"
wireguard wireguard-go -f
