// Package disk gives a node a file system of its own that can be frozen, filled, and
// made to lose what was not synced.
//
// Start reading at Make. A disk is ext4 on a loop device over a sparse file. PowerCut is
// the interesting one: it tells ext4 to stop at once without writing anything more
// (EXT4_IOC_SHUTDOWN, as xfstests does), so that after the next mount only that is there
// which the node had asked to be durable: kill -9 alone loses nothing, since the kernel
// still has all pages. Linux and root only; no goroutines.
//
// Mounts belong into a mount namespace of their own: Private moves this process into one,
// so that nothing stays mounted however the process ends.
package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// privateMark tells the process that Private started it again.
const privateMark = "SHOAL_LAB_PRIVATE_MOUNTS"

// Private starts the program again, under the same process id and with the same
// arguments, in a mount namespace of its own; in there it returns nil at once. Call it
// first in main.
func Private() error {
	if os.Getenv(privateMark) != "" {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// The namespace is the thread's, and exec makes this thread the process.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace, which needs root: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	return unix.Exec(self, os.Args, append(os.Environ(), privateMark+"=1"))
}

// Disk is a mounted file system. Its methods are for one goroutine at a time.
type Disk struct {
	image string
	Mount string // where it is mounted
}

// Make makes a disk of so many bytes, whose contents lie in a sparse file, and mounts it.
//
// Errors: not root, no mkfs.ext4 (Debian package e2fsprogs), no free loop device.
func Make(image, mount string, bytes int64) (*Disk, error) {
	if err := os.MkdirAll(mount, 0o700); err != nil {
		return nil, err
	}
	f, err := os.Create(image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(bytes), f.Close()); err != nil {
		return nil, fmt.Errorf("disk %s: %w", image, err)
	}
	// No room kept for root, who the nodes are; nothing written in the background.
	if err := command("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", image); err != nil {
		return nil, err
	}
	d := &Disk{image: image, Mount: mount}
	return d, d.mount()
}

func (d *Disk) mount() error { return command("mount", "-o", "loop,noatime", d.image, d.Mount) }

// Freeze lets every write to the disk hang until Thaw.
func (d *Disk) Freeze() error { return command("fsfreeze", "--freeze", d.Mount) }

// Thaw undoes Freeze.
func (d *Disk) Thaw() error { return command("fsfreeze", "--unfreeze", d.Mount) }

// ext4's own: _IOR('X', 125, __u32), and the flag that leaves the journal as it is on the device.
const (
	shutdownRequest = 2<<30 | 4<<16 | 'X'<<8 | 125
	withoutFlush    = 2
)

// PowerCut ends the disk: all that was not synced is lost, and every call fails until
// Replug.
func (d *Disk) PowerCut() error {
	fd, err := unix.Open(d.Mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("power of %s: %w", d.Mount, err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetPointerInt(fd, shutdownRequest, withoutFlush); err != nil {
		return fmt.Errorf("power of %s: %w", d.Mount, err)
	}
	return nil
}

// Replug mounts the disk again after a PowerCut. No process may have anything open there.
func (d *Disk) Replug() error {
	if err := unix.Unmount(d.Mount, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", d.Mount, err)
	}
	return d.mount()
}

const ballast = "ballast"

// Fill takes all free space away but for left bytes; Empty gives it back.
func (d *Disk) Fill(left int64) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(d.Mount, &stat); err != nil {
		return fmt.Errorf("fill %s: %w", d.Mount, err)
	}
	f, err := os.Create(filepath.Join(d.Mount, ballast))
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, max(4096, int64(stat.Bavail)*stat.Bsize-left))
	if errors.Is(err, unix.ENOSPC) { // fuller than it said: what it got it keeps
		return nil
	}
	return err
}

// Empty undoes Fill.
func (d *Disk) Empty() error {
	if err := os.Remove(filepath.Join(d.Mount, ballast)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Close unmounts the disk and removes its file. What is still open there goes with who
// has it open.
func (d *Disk) Close() error {
	_ = unix.Unmount(d.Mount, unix.MNT_DETACH)
	return os.Remove(d.image)
}

func command(name string, args ...string) error {
	if output, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
