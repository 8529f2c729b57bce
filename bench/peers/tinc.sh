# tinc 1.0: TAP in switch mode, its default cipher (AES-256-CBC) and digest. Containers' MTU as its path MTU discovery finds.
. "$(dirname "$0")/lib.sh"
for side in a b; do
  mkdir -p $side/hosts
  printf 'Name = %s\nMode = switch\nDeviceType = tap\nInterface = tinc0\nAddressFamily = ipv4\n' $side >$side/tinc.conf
done
echo 'ConnectTo = b' >>a/tinc.conf
printf 'Address = %s 655\n' $UA >a/hosts/a
printf 'Address = %s 655\n' $UB >b/hosts/b
for side in a b; do
  tincd -c "$PWD/$side" -K2048 </dev/null >$side.key.log 2>&1
done
cp b/hosts/b a/hosts/b
cp a/hosts/a b/hosts/a
start b "$B" tincd -c "$PWD/b" -D --pidfile="$PWD/b/pid"
until_true has_device "$B" tinc0
bridged "$B" "$CB" 10.32.0.2/24 tinc0 1437
start a "$A" tincd -c "$PWD/a" -D --pidfile="$PWD/a/pid"
until_true has_device "$A" tinc0
bridged "$A" "$CA" 10.32.0.1/24 tinc0 1437
# Large packets go over TCP until the path MTU is known.
until_true in_ns "$CA" ping -c 1 -W 1 10.32.0.2
sleep 9
stands
