package hostcheck

// ErrUnknown is what a trial returns when the kernel lacks what it needs.
var ErrUnknown = errUnknown

// Local is the machine that tests run on.
var Local System = local{}
