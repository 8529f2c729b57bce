# boringtun-cli: in the foreground and without dropping privileges; MTU 1420 as for WireGuard.
. "$(dirname "$0")/lib.sh"
wireguard boringtun-cli --foreground --disable-drop-privileges
