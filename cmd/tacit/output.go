package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// The forms of output.
const (
	outputText = "text"
	outputJSON = "json"
	outputYAML = "yaml"
	outputWide = "wide"  // text whose tables show all that there is to say
	aliasTable = "table" // of text, as it is called elsewhere
)

// form is a flag for one.
type form string

func (f *form) String() string { return string(*f) }
func (f *form) Type() string   { return "form" }

func (f *form) Set(text string) error {
	if text == aliasTable {
		text = outputText
	}
	*f = form(text)
	return nil
}

// outputFlag adds --output; more are forms besides those that all commands have.
func outputFlag(set *pflag.FlagSet, output *string, more ...string) {
	*output = outputText
	set.VarP((*form)(output), "output", "o", "`form` of the answer: "+outputForms(more))
}

func outputForms(more []string) string {
	forms := append([]string{outputText, outputJSON, outputYAML}, more...)
	last := len(forms) - 1
	return strings.Join(forms[:last], ", ") + " or " + forms[last]
}

// checkOutput refuses forms that a command does not have.
func checkOutput(form string, more ...string) error {
	if form == outputText || forPrograms(form) || slices.Contains(more, form) {
		return nil
	}
	return fmt.Errorf("output %q: want %s", form, outputForms(more))
}

// forPrograms reports whether a form is that of data, rather than of people.
func forPrograms(form string) bool { return form == outputJSON || form == outputYAML }

// printAs writes a value in a form for programs.
func printAs(out io.Writer, form string, value any) error {
	if form != outputYAML {
		return json.NewEncoder(out).Encode(value)
	}
	text, err := yaml.Marshal(value)
	if err != nil {
		return fmt.Errorf("write YAML: %w", err)
	}
	_, err = out.Write(text)
	return err
}
