package cli

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/remedy"
)

const bashCompletion = `# bash completion for atoll: put it into /etc/bash_completion.d/atoll, or run  . <(atoll completion bash)
_atoll() {
	local IFS=$'\n'
	COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" "${COMP_WORDS[@]:1:COMP_CWORD-1}" "${COMP_WORDS[COMP_CWORD]}" --generate-bash-completion 2>/dev/null)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o bashdefault -o default -F _atoll atoll
`

const zshCompletion = `#compdef atoll
# zsh completion for atoll: put it into a folder of $fpath as _atoll, or run  source <(atoll completion zsh)
_atoll() {
	local -a words_
	words_=("${(@f)$(${words[1]} ${words[2,CURRENT]} --generate-bash-completion 2>/dev/null)}")
	compadd -- $words_
}
compdef _atoll atoll
`

func completionCommand(s Streams) *cli.Command {
	return &cli.Command{
		Name:        "completion",
		Usage:       "print the completion script for a shell",
		ArgsUsage:   "bash|zsh",
		Description: "Examples:\n\n   . <(atoll completion bash)\n   source <(atoll completion zsh)",
		Action: func(c *cli.Context) error {
			switch shell := c.Args().First(); shell {
			case "bash":
				fmt.Fprint(s.Out, bashCompletion)
			case "zsh":
				fmt.Fprint(s.Out, zshCompletion)
			case "":
				return errUsage{remedy.Wrap(fmt.Errorf("no shell given"), "use `atoll completion bash` or `atoll completion zsh`")}
			default:
				return errUsage{remedy.Wrap(fmt.Errorf("there is no completion for %q", shell), "use bash or zsh")}
			}
			return nil
		},
	}
}

// completeSettings offers the settings of a role for the word that is being typed.
func completeSettings(s Streams, role config.Role) cli.BashCompleteFunc {
	return func(*cli.Context) {
		args := os.Args
		if len(args) > 0 && args[len(args)-1] == "--generate-bash-completion" {
			args = args[:len(args)-1]
		}
		word, before := "", ""
		if len(args) > 1 {
			word, before = args[len(args)-1], args[len(args)-2]
		}
		for _, w := range config.Complete(role, before, word) {
			fmt.Fprintln(s.Out, w)
		}
	}
}
