package config

import (
	"errors"
	"fmt"

	"github.com/atollhq/atoll/pkg/remedy"
)

// ErrInvalid is in the chain of every error that Load, Validate and UsageError return: somebody asked wrongly (exit code 2).
var ErrInvalid = errors.New("invalid configuration")

// problem is one thing that is wrong with one setting.
type problem struct {
	setting string
	err     error
}

func (p *problem) Error() string        { return p.err.Error() }
func (p *problem) Unwrap() error        { return p.err }
func (p *problem) Is(target error) bool { return target == ErrInvalid }

// problemf makes a problem with the setting; try is its remedy.
func problemf(setting, try, format string, args ...any) error {
	return &problem{setting, remedy.Wrap(fmt.Errorf(format, args...), "%s", try)}
}

// at puts the origin in front of a problem, so that the person knows which line to change.
func at(origin Origin, err error) error {
	if err == nil || origin.Kind == FromDefault {
		return err
	}
	var p *problem
	name := ""
	if errors.As(err, &p) {
		name = p.setting
	}
	return &problem{name, fmt.Errorf("%s: %w", origin, err)}
}

// split returns the errors that errors.Join put together.
func split(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // only what Validate joined itself
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}
