package vm

import (
	"bytes"
	"io"
	"strconv"
	"strings"
)

// console takes the script's part out of what comes over the serial line, and its exit code.
type console struct {
	to          io.Writer
	line        []byte // not ended yet
	begun       bool
	ended       bool
	code        int
	tail        string // last line, for errors
	writeFailed error
}

// Write never fails: a full disk of the reader must not stop the machine in the middle.
func (c *console) Write(p []byte) (int, error) {
	c.line = append(c.line, p...)
	for {
		line, rest, found := bytes.Cut(c.line, []byte("\n"))
		if !found {
			return len(p), nil
		}
		c.take(strings.TrimRight(string(line), "\r"))
		c.line = append([]byte(nil), rest...)
	}
}

func (c *console) take(line string) {
	if line != "" {
		c.tail = line
	}
	if code, ok := strings.CutPrefix(line, markEnd); ok && c.begun {
		n, err := strconv.Atoi(code)
		c.ended, c.code = err == nil, n
		return
	}
	switch {
	case line == markBegin:
		c.begun = true
	case c.begun && !c.ended && c.to != nil && c.writeFailed == nil:
		_, c.writeFailed = io.WriteString(c.to, line+"\n")
	}
}
