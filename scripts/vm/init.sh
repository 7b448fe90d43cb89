#!/bin/busybox sh
# The first process of the virtual machine: mount the file system of the host, and run the tests there.
/bin/busybox mkdir -p /proc /sys /dev /host /new /writes /usr/bin /usr/sbin /sbin # which --install fills
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in virtio_pci virtio_blk virtio_rng virtiofs overlay; do modprobe "$module"; done
mount -t virtiofs -o ro host /host
mount -t tmpfs writes /writes
mkdir /writes/files /writes/work
mount -t overlay -o lowerdir=/host,upperdir=/writes/files,workdir=/writes/work overlay /new
for module in nfsd nfsv4; do modprobe "$module"; done
settings=$(sed 's/.* settings=//' /proc/cmdline)
cp "/host$settings" /new/settings
for folder in proc sys dev run; do mkdir -p "/new/$folder"; done
mount -t proc proc /new/proc
mount -t sysfs sys /new/sys
mount -t devtmpfs dev /new/dev
mkdir -p /new/dev/shm /new/dev/pts
mount -t tmpfs shm /new/dev/shm
mount -t devpts pts /new/dev/pts
mount -t tmpfs run /new/run
mount -t cgroup2 none /new/sys/fs/cgroup
mount -t ext4 /dev/vda /new/var/tmp
ip link set lo up
cp /tests.sh /new/run/tests.sh
chroot /new /bin/sh /run/tests.sh
echo "vm: the tests ended with $?"
umount /new/var/tmp 2>/dev/null
poweroff -f
