package config

import (
	"fmt"
	"slices"
	"strings"
)

// Reference renders docs/reference/config.md from the struct.
func Reference() string {
	var b strings.Builder
	b.WriteString(`# Settings

<!-- Made from the struct in pkg/config by: go test ./pkg/config -run TestReference -update -->

Every setting is a flag of ` + "`atoll server`" + ` or ` + "`atoll agent`" + `, a key of the configuration file, and, where the table names one, an
environment variable. Highest wins: flag, file, environment, default. ` + "`atoll config view`" + ` prints each value and where it came from.

The file is ` + "`" + DefaultFile + "`" + `, or the one that ` + "`--config`" + ` or ` + "`" + fileVariable + "`" + ` names. After it come the files of the folder with the same name and
` + "`.d`" + ` at its end, in name order. A key in a later file replaces the one before; ` + "`key+`" + ` appends to a list instead.

` + "```yaml" + `
# /etc/atoll/config.yaml
write-kubeconfig-mode: "0640"
tls-san:
  - atoll.shop.example
disable: metrics-server
` + "```" + `

` + "```yaml" + `
# /etc/atoll/config.yaml.d/50-till.yaml
tls-san+:
  - 192.168.1.10
node-label:
  till: "1"
` + "```" + `

An unknown key, a value of the wrong type and a key that is there twice are errors that name file and line. A file may have 1 MiB.
`)
	for _, group := range groups() {
		fmt.Fprintf(&b, "\n## %s\n\n| name | for | default | environment | meaning |\n|---|---|---|---|---|\n", strings.ToUpper(group[:1])+group[1:])
		for _, s := range settings() {
			if s.group == group {
				fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", s.markdownName(), s.markdownRole(), s.markdownDefault(), code(s.env), s.help)
			}
		}
	}
	b.WriteString(`
## Settings of K3s that atoll does not have

Each is an error with the reason, wherever it stands: nothing is ignored in silence. A value in the second column asks for what atoll does
anyway and is accepted with a warning. In ` + "`disable`" + ` that holds for ` + code(strings.Join(absentParts(), ", ")) + `.

| name | accepted | why not | instead |
|---|---|---|---|
`)
	writeForeigners(&b)
	return b.String()
}

// writeForeigners gives one row to neighbours that have everything but the name in common.
func writeForeigners(b *strings.Builder) {
	list := foreigners()
	row := func(f foreign) string {
		return fmt.Sprintf(" | %s | %s | %s |\n", code(strings.Join(f.harmless, ", ")), f.why, f.instead)
	}
	for i := 0; i < len(list); {
		var names []string
		first := i
		for ; i < len(list) && row(list[i]) == row(list[first]); i++ {
			names = append(names, code(list[i].name))
		}
		b.WriteString("| " + strings.Join(names, ", ") + row(list[first]))
	}
}

// groups lists the groups in the order in which they first occur.
func groups() []string {
	var list []string
	for _, s := range settings() {
		if !slices.Contains(list, s.group) {
			list = append(list, s.group)
		}
	}
	return list
}

func (s setting) markdownName() string {
	var parts []string
	for _, n := range s.names() {
		parts = append(parts, code(n))
	}
	if s.isList() {
		parts = append(parts, "list")
	}
	return strings.Join(parts, ", ")
}

func (s setting) markdownDefault() string {
	if s.normal != "" {
		return s.normal
	}
	return code(s.show(Default()))
}

func (s setting) markdownRole() string {
	if s.role == "" {
		return "both"
	}
	return string(s.role)
}

func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + text + "`"
}
