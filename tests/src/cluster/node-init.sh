# Process 1 of a node: gives it folders of its own, then reaps what it inherits until it is killed.
# Arguments: folder of the node's state on the machine.
set -eu
state=$1

mkdir -p "$state/disk" "$state/lib" "$state/lib-work" "$state/log" "$state/log-work"
# Sockets have short, usual paths, whatever the checkout's path is.
mount -t tmpfs -o mode=755,size=256m run /run
mkdir -p /run/node /run/lock
mount --bind "$state/disk" /run/node
# What kubelet and the network plugins write to fixed places stays with the node; the machine's own content stays visible.
mount -t overlay -o "lowerdir=/var/lib,upperdir=$state/lib,workdir=$state/lib-work" node /var/lib
mount -t overlay -o "lowerdir=/var/log,upperdir=$state/log,workdir=$state/log-work" node /var/log
# Volumes that appear later must reach containers.
mount --make-rshared /

ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
touch /run/node-ready

# Bash reaps every process that is handed to it while it waits.
while :; do
  sleep infinity &
  wait "$!" || true
done
