#!/bin/sh
# Run unit tests in a virtual machine with cgroup v2, and with NFS as storage if asked: run.sh PYTHON DISK|NFS TEST...
#
# The machine has Debian's kernel and the file system of this one, read-only. It is emulated, because KVM is not available
# everywhere, so tests take about ten times as long.
set -eu
python=$1 storage=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
cache=$RESHARD_CACHE/vm
sh "$here/../apt.sh" qemu-system-x86 cpio busybox-static
virtiofsd=/usr/lib/qemu/virtiofsd # until Debian 12
[ -x "$virtiofsd" ] || { sh "$here/../apt.sh" virtiofsd && virtiofsd=/usr/libexec/virtiofsd; }

# Packages are only unpacked: installed, they would start servers.
if [ ! -e "$cache/ready" ]; then
    rm -rf "$cache"
    mkdir -p "$cache/packages" "$cache/root"
    kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p')
    (cd "$cache/packages" && apt-get download -qq "$kernel" nfs-kernel-server nfs-common)
    for package in "$cache"/packages/*.deb; do dpkg-deb --extract "$package" "$cache/root"; done
    touch "$cache/ready"
fi
release=$(ls "$cache/root/lib/modules")

work=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
server=''
mkdir -p "$work/initrd/bin" "$work/initrd/lib/modules/$release/kernel"
cp /bin/busybox "$work/initrd/bin/"
cp "$here/init.sh" "$work/initrd/init"
cp "$here/tests.sh" "$work/initrd/tests.sh"
chmod +x "$work/initrd/init"
for part in fs net crypto lib drivers/virtio drivers/block drivers/char/hw_random; do
    mkdir -p "$work/initrd/lib/modules/$release/kernel/$part"
    cp -r "$cache/root/lib/modules/$release/kernel/$part/." "$work/initrd/lib/modules/$release/kernel/$part"
done
(cd "$work/initrd" && busybox depmod -b . "$release" && find . | cpio --create --format newc --quiet | gzip -1) >"$work/initrd.gz"
truncate --size 8G "$work/disk"
mke2fs -q -t ext4 "$work/disk"
cat >"$work/settings" <<END
storage='$storage'
nfs='$cache/root'
python='$python'
folder='$PWD'
tests='$*'
END

"$virtiofsd" --socket-path="$work/socket" -o source=/ -o cache=always -o sandbox=chroot >"$work/virtiofsd.log" 2>&1 &
server=$!
while [ ! -S "$work/socket" ]; do
    kill -0 "$server" || { cat "$work/virtiofsd.log" >&2; exit 1; }
    sleep 0.1
done
qemu-system-x86_64 -machine q35,memory-backend=memory -accel tcg -cpu max -smp 2 -m 4G -nographic -no-reboot -nic none \
    -object memory-backend-memfd,id=memory,size=4G,share=on \
    -kernel "$cache/root/boot/vmlinuz-$release" -initrd "$work/initrd.gz" \
    -append "console=ttyS0 quiet panic=-1 settings=$work/settings" \
    -chardev socket,id=host,path="$work/socket" -device vhost-user-fs-pci,chardev=host,tag=host \
    -drive file="$work/disk",format=raw,if=virtio,cache=unsafe -device virtio-rng-pci </dev/null | tee "$work/output"
grep -q '^vm: the tests ended with 0' "$work/output"
