package cgroup

// Read lets tests see what is planned from.
var Read = read
