package main

import (
	"strings"

	"golang.org/x/sys/unix"
)

// flagOption says what one word of `-o` does to the flags of mount(2): sets one or clears one.
type flagOption struct {
	set, clear uintptr
}

var flagOptions = map[string]flagOption{
	"ro": {set: unix.MS_RDONLY}, "rw": {clear: unix.MS_RDONLY},
	"nosuid": {set: unix.MS_NOSUID}, "suid": {clear: unix.MS_NOSUID},
	"nodev": {set: unix.MS_NODEV}, "dev": {clear: unix.MS_NODEV},
	"noexec": {set: unix.MS_NOEXEC}, "exec": {clear: unix.MS_NOEXEC},
	"sync": {set: unix.MS_SYNCHRONOUS}, "async": {clear: unix.MS_SYNCHRONOUS},
	"dirsync": {set: unix.MS_DIRSYNC}, "silent": {set: unix.MS_SILENT}, "loud": {clear: unix.MS_SILENT},
	"mand": {set: unix.MS_MANDLOCK}, "nomand": {clear: unix.MS_MANDLOCK},
	"noatime": {set: unix.MS_NOATIME}, "atime": {clear: unix.MS_NOATIME},
	"nodiratime": {set: unix.MS_NODIRATIME}, "diratime": {clear: unix.MS_NODIRATIME},
	"relatime": {set: unix.MS_RELATIME}, "norelatime": {clear: unix.MS_RELATIME},
	"strictatime": {set: unix.MS_STRICTATIME}, "nostrictatime": {clear: unix.MS_STRICTATIME},
	"lazytime": {set: unix.MS_LAZYTIME}, "nolazytime": {clear: unix.MS_LAZYTIME},
	"nosymfollow": {set: unix.MS_NOSYMFOLLOW}, "symfollow": {clear: unix.MS_NOSYMFOLLOW},
	"remount": {set: unix.MS_REMOUNT}, "bind": {set: unix.MS_BIND}, "rbind": {set: unix.MS_BIND | unix.MS_REC},
	"move":     {set: unix.MS_MOVE},
	"defaults": {clear: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_SYNCHRONOUS},
}

var propagationOptions = map[string]uintptr{
	"shared": unix.MS_SHARED, "private": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "unbindable": unix.MS_UNBINDABLE,
	"rshared": unix.MS_SHARED | unix.MS_REC, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"rslave": unix.MS_SLAVE | unix.MS_REC, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// hostOnly are words for fstab and mount(8) itself; a kernel would refuse them.
var hostOnly = map[string]bool{
	"auto": true, "noauto": true, "user": true, "nouser": true, "users": true, "owner": true, "group": true, "nofail": true, "_netdev": true,
}

// perMount are the flags that a bind mount may have for itself; the rest belong to the file system.
const perMount = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME |
	unix.MS_RELATIME | unix.MS_STRICTATIME | unix.MS_NOSYMFOLLOW

// mountOptions is the parsed form of one or more `-o` lists.
type mountOptions struct {
	flags       uintptr
	propagation []uintptr // one call each, after the mount
	data        []string  // words for the file system
	words       []string  // all of them as given, for a mount.TYPE helper
}

// add takes one comma-separated list. Words that are nobody's become data for the file system.
func (o *mountOptions) add(list string) {
	for word := range strings.SplitSeq(list, ",") {
		if word == "" {
			continue
		}
		o.words = append(o.words, word)
		if flag, ok := flagOptions[word]; ok {
			o.flags = o.flags&^flag.clear | flag.set
		} else if p, ok := propagationOptions[word]; ok {
			o.propagation = append(o.propagation, p)
		} else if !hostOnly[word] && !strings.HasPrefix(word, "x-") && !strings.HasPrefix(word, "X-") && !strings.HasPrefix(word, "comment=") {
			o.data = append(o.data, word)
		}
	}
}
