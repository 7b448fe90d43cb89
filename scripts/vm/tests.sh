# Run the tests inside the virtual machine, on its disk or on NFS.
set -eu
. /settings
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONDONTWRITEBYTECODE=1 TMPDIR=/var/tmp
echo "+memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
if [ "$storage" = NFS ]; then
    mkdir -p /export /var/lib/nfs/v4recovery /var/lib/nfs/rpc_pipefs
    mount --bind /var/tmp /export
    mount -t nfsd nfsd /proc/fs/nfsd
    mount -t rpc_pipefs rpc /var/lib/nfs/rpc_pipefs
    touch /var/lib/nfs/etab /var/lib/nfs/rmtab
    echo "/export 127.0.0.1(rw,sync,no_root_squash,fsid=0,no_subtree_check)" >/etc/exports
    "$nfs/usr/sbin/rpc.mountd" -N 3
    "$nfs/usr/sbin/exportfs" -ra
    "$nfs/usr/sbin/rpc.nfsd" -N 3 -V 4.2 8
    sleep 3
    "$nfs/sbin/mount.nfs" 127.0.0.1:/ /var/tmp -o vers=4.2
fi
echo "vm: Linux $(uname -r), cgroup v2, $(df --output=fstype /var/tmp | tail -n 1)"
cd "$folder"
# shellcheck disable=SC2086  # a list of tests
exec "$python" -m pytest -p no:cacheprovider --color=no -q -n 2 --basetemp=/var/tmp/pytest --durations=5 $tests
