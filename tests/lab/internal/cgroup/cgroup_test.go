package cgroup_test

import (
	"slices"
	"testing"

	"github.com/atollhq/atoll/tests/lab/internal/cgroup"
)

const hybridMounts = `31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`

func TestPlanFollowsTheHost(t *testing.T) {
	tests := []struct {
		name, mounts, own string
		want              cgroup.Tree
	}{
		{
			name:   "hybrid: below the caller's own groups",
			mounts: hybridMounts,
			own:    "9:name=systemd:/user.slice\n4:memory:/job/7\n1:cpu,cpuacct:/\n0::/\n",
			want: cgroup.Tree{
				V1: []string{"/sys/fs/cgroup/systemd/user.slice/L", "/sys/fs/cgroup/memory/job/7/L", "/sys/fs/cgroup/cpu,cpuacct/L"},
				V2: "/sys/fs/cgroup/unified/L",
			},
		},
		{
			name:   "v2: at the root, because the caller's group holds processes",
			mounts: "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
			own:    "0::/user.slice/user-0.slice/session-1.scope\n",
			want:   cgroup.Tree{V2: "/sys/fs/cgroup/L", Delegate: true},
		},
		{
			name:   "container that sees a part of the tree",
			mounts: "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n",
			own:    "4:memory:/docker/abc/inner\n3:pids:/docker/abc\n",
			want:   cgroup.Tree{V1: []string{"/sys/fs/cgroup/memory/inner/L"}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := cgroup.Plan(cgroup.Parse(tt.mounts, tt.own), "L")
			if !slices.Equal(got.V1, tt.want.V1) || got.V2 != tt.want.V2 || got.Delegate != tt.want.Delegate {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}
