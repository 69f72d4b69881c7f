package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"

	"github.com/atollhq/atoll/pkg/remedy"
)

// Bounds of what is read. They are far above what people write and far below what would hurt a small machine.
const (
	maxFileBytes = 5 << 20
	maxFiles     = 1000
	maxObjects   = 5000 // in one file
	maxDepth     = 8    // of folders
)

// Document is one object of a file.
type Document struct {
	Number int // of the YAML or JSON document, from 1
	Line   int // where that document begins, from 1
	Object *unstructured.Unstructured
}

// Name is how messages call the object: Deployment shop/till.
func (d Document) Name() string { return objectName(d.Object) }

func objectName(o *unstructured.Unstructured) string {
	if o.GetNamespace() == "" {
		return o.GetKind() + " " + o.GetName()
	}
	return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}

// Parse reads the objects of a file. Files whose name ends in .json hold JSON values, all others YAML documents; lists become
// their items. All mistakes are returned together; then there are no documents, because half a file must not be applied.
func Parse(name string, data []byte) ([]Document, []FileError) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if !utf8.Valid(data) {
		return nil, []FileError{fileError(0, 0, "", remedy.Wrap(errors.New("the file is not UTF-8 text"), "save it as UTF-8"))}
	}
	p := parser{}
	if strings.HasSuffix(name, ".json") {
		p.json(data)
	} else {
		p.yaml(data)
	}
	if len(p.docs) > maxObjects {
		p.fail(0, 0, "", remedy.Wrap(fmt.Errorf("the file has %d objects", len(p.docs)), "spread them over files of at most %d", maxObjects))
	}
	if len(p.errs) > 0 {
		return nil, p.errs
	}
	return p.docs, nil
}

type parser struct {
	docs []Document
	errs []FileError
}

func (p *parser) fail(doc, line int, object string, err error) {
	if len(p.errs) < 20 {
		p.errs = append(p.errs, fileError(doc, line, object, err))
	}
}

func (p *parser) yaml(data []byte) {
	for i, part := range split(data) {
		raw, err := yaml.YAMLToJSONStrict(part.text)
		if err != nil {
			line, err := inFile(err, part.line)
			p.fail(i+1, line, "", remedy.Wrap(err, "correct the file; the objects of its last good version stay as they are"))
			continue
		}
		p.object(i+1, part.line, raw)
	}
}

func (p *parser) json(data []byte) {
	dec := json.NewDecoder(bytes.NewReader(data))
	for number := 1; ; number++ {
		var raw json.RawMessage
		from := dec.InputOffset()
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return
		}
		line := 1 + bytes.Count(data[:from], []byte("\n"))
		if err != nil {
			p.fail(number, line, "", remedy.Wrap(err, "correct the file; the objects of its last good version stay as they are"))
			return
		}
		p.object(number, line, raw)
	}
}

// object takes one document as JSON.
func (p *parser) object(number, line int, raw []byte) {
	if string(bytes.TrimSpace(raw)) == "null" {
		return
	}
	obj := &unstructured.Unstructured{}
	// Not the reader of the type itself: its errors repeat the whole object, which may be a secret.
	if err := utiljson.Unmarshal(raw, &obj.Object); err != nil {
		p.fail(number, line, "", remedy.Wrap(errors.New("the document is not an object"), "begin it with apiVersion and kind"))
		return
	}
	p.add(number, line, obj, 0)
}

func (p *parser) add(number, line int, obj *unstructured.Unstructured, depth int) {
	if strings.HasSuffix(obj.GetKind(), "List") && obj.IsList() && depth < 4 {
		err := obj.EachListItem(func(item runtime.Object) error {
			u, ok := item.(*unstructured.Unstructured)
			if !ok {
				return errors.New("the list holds something that is not an object")
			}
			p.add(number, line, u, depth+1)
			return nil
		})
		if err != nil {
			p.fail(number, line, "", remedy.Wrap(err, "correct the file"))
		}
		return
	}
	if err := check(obj); err != nil {
		p.fail(number, line, obj.GetKind(), err)
		return
	}
	p.docs = append(p.docs, Document{Number: number, Line: line, Object: obj})
}

// check finds what the API would refuse with a message that does not help, or what would be lost on the way.
func check(obj *unstructured.Unstructured) error {
	if obj.GetKind() == "" || obj.GetAPIVersion() == "" {
		return remedy.Wrap(errors.New("apiVersion or kind is missing"), "give both")
	}
	if _, err := schema.ParseGroupVersion(obj.GetAPIVersion()); err != nil {
		return remedy.Wrap(err, "write apiVersion as group/version or, for the core group, v1")
	}
	for _, field := range []string{"name", "namespace"} {
		if _, _, err := unstructured.NestedString(obj.Object, "metadata", field); err != nil {
			return remedy.Wrap(fmt.Errorf("metadata.%s is not text", field), "put it in quotes")
		}
	}
	for _, field := range []string{"labels", "annotations"} {
		values, _, err := unstructured.NestedMap(obj.Object, "metadata", field)
		if err != nil {
			return remedy.Wrap(fmt.Errorf("metadata.%s is not a map", field), "write one name: \"value\" per line")
		}
		for name, value := range values {
			if _, ok := value.(string); !ok {
				return remedy.Wrap(fmt.Errorf("metadata.%s: the value of %s is not text", field, name), "put it in quotes")
			}
		}
	}
	if obj.GetName() == "" {
		return remedy.Wrap(errors.New("metadata.name is missing"), "give a name; generateName would make another object each time")
	}
	return nil
}

type part struct {
	line int // of its first line in the file, from 1
	text []byte
}

// split cuts YAML text at the lines that end a document. Such a line begins in the first column, where no content of a document can
// stand, so no YAML needs to be understood. Parts without content are left out.
func split(data []byte) []part {
	var parts []part
	begin, line := 0, 1
	flush := func(end int) {
		if text := data[begin:end]; hasContent(text) {
			parts = append(parts, part{line: line - bytes.Count(text, []byte("\n")), text: text})
		}
	}
	for at := 0; at < len(data); {
		end := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		switch text := bytes.TrimRight(data[at:end], "\r\n"); {
		case isMarker(text, "---"):
			flush(at)
			begin = at + len("---") // what follows on the line belongs to the new document
		case isMarker(text, "..."):
			flush(at)
			begin = end
		}
		if end > at && data[end-1] == '\n' {
			line++
		}
		at = end
	}
	flush(len(data))
	return parts
}

func isMarker(line []byte, marker string) bool {
	rest, found := bytes.CutPrefix(line, []byte(marker))
	return found && (len(rest) == 0 || rest[0] == ' ' || rest[0] == '\t')
}

// hasContent tells whether there is anything but comments and directives.
func hasContent(text []byte) bool {
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return true
		}
	}
	return false
}

var yamlLine = regexp.MustCompile(`line (\d+)`)

// inFile turns the line numbers of an error about a document that begins at line first into those of the file. It returns the
// first of them, and the error with all of them.
func inFile(err error, first int) (int, error) {
	at := first
	text := yamlLine.ReplaceAllStringFunc(plain(err).Error(), func(m string) string {
		n, _ := strconv.Atoi(m[len("line "):])
		if at == first {
			at = first + n - 1
		}
		return "line " + strconv.Itoa(first+n-1)
	})
	return at, errors.New(text)
}

// plain takes from an error of a library what says nothing to a reader.
func plain(err error) error {
	text := err.Error()
	for _, prefix := range []string{"error converting YAML to JSON: ", "yaml: ", "unmarshal errors:"} {
		text = strings.TrimSpace(strings.TrimPrefix(text, prefix))
	}
	return errors.New(strings.Join(strings.Fields(text), " "))
}
