package support

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// redacted stands where something was that nobody else is to see.
const redacted = "[redacted]"

// secretName finds what names a secret: a member of an object, a variable, a
// flag or a header.
const secretName = `(?:passw(?:or)?d|passphrase|[_-]pass\b|pwd|secret|token|credential|authorization|x[_-]auth|cookie|(?:api|private|access|signing|encryption)[_-]?key)`

// stems are in whatever secretName, scheme, webToken and inQuery match, in small
// letters.
var stems = []string{"pass", "pwd", "secret", "token", "credential", "auth", "cookie", "key", "eyj", "bearer", "basic", "negotiate", "sig", "code="}

// quoted is a value in quotes, which are escaped in JSON that is within a text.
const quoted = `\\*"(?:[^"\\]|\\.)*"|'[^']*'`

// maxKey is longer than a private key is.
const maxKey = 16 << 10

var (
	// privateKey ends with the text where it was cut.
	privateKey = regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`)
	// keyEnd is the rest of a key whose beginning was cut off.
	keyEnd = regexp.MustCompile(`(?s)\A[A-Za-z0-9+/=\s\\]*-----END [A-Z0-9 ]*PRIVATE KEY-----`)
	// encodedPEM is base64 of what begins with "-----BEGIN", as in kubeconfigs.
	encodedPEM = regexp.MustCompile(`LS0tLS1CRUdJTi[A-Za-z0-9+/=_-]+`)
	// webToken is a JWT: its header is an object, so it begins with {" in base64.
	webToken = regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)*`)
	// scheme is what HTTP's Authorization header holds.
	scheme = regexp.MustCompile(`(?i)\b(bearer|basic|negotiate) +[A-Za-z0-9._~+/=-]{6,}`)
	// userinfo is that of a URL, whatever is in it.
	userinfo = regexp.MustCompile(`://[^\s"']*@`)
	// inQuery are parameters of a URL whose names say too little elsewhere.
	inQuery = regexp.MustCompile(`(?i)((?:[?&;]|\\u0026)(?:sig|[\w-]*signature|code|key|auth|pass)=)[^&\s"';\\]+`)
	// assigned is a name that speaks of a secret, and its value.
	assigned = regexp.MustCompile(`(?i)([\w.\[\]-]*` + secretName + `[\w.\[\]-]*)(["'\\]*\s*[:=]\s*)(` + quoted + `|\[[^\]]*\]?|\{[^}]*\}?|[^\s",;&}]+)`)
	// header is one that has several parts: all of the line, up to a quote.
	header = regexp.MustCompile(`(?i)((?:authorization|cookie)[\w.\[\]-]*)(["'\\]*\s*:\s*)([^\s"'\\\[{][^"\r\n\\]*)`)
	// apart is a flag whose value is the next argument.
	apart = regexp.MustCompile(`(?i)((?:^|[\s"'\[,=(])--?[\w.-]*` + secretName + `[\w.-]*)((?:\\*["'])?[\s,]+)(` + quoted + `|[^\s"',\\-][^\s"',]*)`)
	// word is one more of a value, unless it is a nextName.
	word     = regexp.MustCompile(`^[ \t]+[^\s",;&}]+`)
	nextName = regexp.MustCompile(`^\s+(?:-|["'\\]*[\w.\[\]-]+["'\\]*[=:])`)
	flag     = regexp.MustCompile(`^--?[\w.-]+$`)
	// opening is a line of YAML whose value is in the lines after it.
	opening = regexp.MustCompile(`(?i)^([ \t-]*)["']?([\w.\[\]-]*` + secretName + `[\w.\[\]-]*)["']?\s*:\s*(?:[|>][0-9+-]*|[\[{])?\s*(?:#.*)?$`)
	named   = regexp.MustCompile(`(?i)` + secretName)
	// pointed is a name of something about a secret, which is none.
	pointed = regexp.MustCompile(`(?i)(?:name|path|paths|ref|file|review|reviews|namespace|seconds|expiry|audience|policy|type|kind|duration|[_-]ttl|count|total|mode|projection|prefix|prefixes|headers?|fromheaders|fromparams|fromcookies)$`)
	// counted is a name of a number that is no secret.
	counted   = regexp.MustCompile(`(?i)(?:^(?:max|min|num)|(?:count|total|seconds|size|bytes|length|limit|port|version|generation|requests|errors|failures)$)`)
	number    = regexp.MustCompile(`^\d+$`)
	harmless  = regexp.MustCompile(`^(?:true|false|null|/(?:etc|run|var|tmp)/[\w./-]*|\{|\[|[|>][0-9+-]*|-)$`)
	separator = regexp.MustCompile(`(?m)^---[ \t]*\n`) // of documents of YAML
)

// Text is a text without what must stay secret: private keys, tokens, and the
// values of names that speak of a secret.
func Text(text []byte) []byte {
	text = privateKey.ReplaceAll(text, []byte("[redacted private key]"))
	if begin := text[:min(len(text), maxKey)]; keyEnd.Match(begin) {
		text = slices.Concat(keyEnd.ReplaceAll(begin, []byte("[redacted private key]")), text[len(begin):])
	}
	text = encodedPEM.ReplaceAll(text, []byte(redacted))
	text = userinfo.ReplaceAll(text, []byte("://"+redacted+"@"))
	var (
		out   bytes.Buffer
		below = -1 // the column of the name whose value is in the lines after it
	)
	for line := range bytes.Lines(text) {
		if below >= 0 && len(bytes.TrimSpace(line)) > 0 {
			rest := bytes.TrimLeft(line, " \t")
			column := len(line) - len(rest)
			if column > below || column == below && bytes.HasPrefix(rest, []byte("- ")) {
				out.Write(slices.Concat(line[:column], []byte(redacted+"\n")))
				continue
			}
			below = -1
		}
		// What looks into every word is slow, and most lines have nothing for it.
		if suspicious(line) {
			if parts := opening.FindSubmatch(line); parts != nil && !pointed.Match(parts[2]) {
				below = len(parts[1])
			}
			line = ofLine(line)
		}
		out.Write(line)
	}
	return out.Bytes()
}

// ofLine is a line without what must stay secret: JSON, as logs have it, by its
// members.
func ofLine(line []byte) []byte {
	if begin := bytes.TrimSpace(line); len(begin) > 0 && (begin[0] == '{' || begin[0] == '[') {
		if value, ok := decode(line); ok {
			var out bytes.Buffer
			in := json.NewEncoder(&out)
			in.SetEscapeHTML(false)
			if in.Encode(Object(value)) == nil {
				return out.Bytes()
			}
		}
	}
	line = webToken.ReplaceAll(line, []byte(redacted))
	line = scheme.ReplaceAll(line, []byte("${1} "+redacted))
	line = inQuery.ReplaceAll(line, []byte("${1}"+redacted))
	return values(apart, values(assigned, values(header, line)))
}

// suspicious reports whether a line may have something that those expressions
// find.
func suspicious(line []byte) bool {
	line = bytes.ToLower(line)
	return slices.ContainsFunc(stems, func(stem string) bool { return bytes.Contains(line, []byte(stem)) })
}

// values takes out those of names that speak of a secret: an expression finds a
// name, what is between, and the value.
func values(expression *regexp.Regexp, line []byte) []byte {
	var out bytes.Buffer
	for {
		at := expression.FindSubmatchIndex(line)
		if at == nil {
			break
		}
		end := at[1]
		name, found := line[at[2]:at[3]], line[at[6]:at[7]]
		value := bytes.Trim(found, `"'\`)
		if pointed.Match(name) || harmless.Match(value) || number.Match(value) && counted.Match(name) {
			out.Write(line[:end])
		} else {
			out.Write(line[:at[6]])
			out.WriteString(`"` + redacted + `"`)
			if !bytes.ContainsAny(found[:1], `"'\\[{`) {
				end = endOfWords(line, end, bytes.ContainsRune(line[at[4]:at[5]], ':'))
			}
		}
		line = line[end:]
	}
	out.Write(line)
	return out.Bytes()
}

// endOfWords is where a value ends that is not in quotes and may have several
// words: at a separator, or before what looks like the next name or flag, unless
// it stands behind a colon, as in YAML, where its words may look like anything.
func endOfWords(line []byte, end int, colon bool) int {
	for {
		next := word.Find(line[end:])
		if next == nil || !colon && nextName.Match(next) {
			return end
		}
		end += len(next)
	}
}

// dropped members of objects say nothing of use and may repeat what was
// redacted.
var dropped = []string{"managedFields", "kubectl.kubernetes.io/last-applied-configuration"}

// Object is a value of JSON without what must stay secret.
func Object(value any) any {
	switch v := value.(type) {
	case map[string]any:
		return object(v)
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = Object(item)
			if i > 0 && isFlag(v[i-1]) { // a flag's value is the next argument
				out[i] = hiddenArgument(item)
			}
		}
		return out
	case string:
		return content(v)
	}
	return value
}

// isFlag reports whether a value is a flag that takes a secret as the argument
// after it.
func isFlag(value any) bool {
	text, ok := value.(string)
	return ok && flag.MatchString(text) && secret(text)
}

func hiddenArgument(value any) any {
	if text, ok := value.(string); ok && harmless.MatchString(text) {
		return text
	}
	return hidden("", value)
}

// content is a text within an object without what must stay secret: what is YAML,
// as many a ConfigMap has it, by its members.
func content(text string) string {
	if !strings.Contains(text, "\n") || !suspicious([]byte(text)) {
		return string(Text([]byte(text)))
	}
	documents := separator.Split(text, -1)
	for i, document := range documents {
		documents[i] = fromYAML(document)
	}
	return strings.Join(documents, "---\n")
}

func fromYAML(document string) string {
	if asJSON, err := yaml.YAMLToJSON([]byte(document)); err == nil {
		value, _ := decode(asJSON)
		switch value.(type) {
		case map[string]any, []any:
			if out, err := yaml.Marshal(Object(value)); err == nil {
				return string(out)
			}
		}
	}
	return string(Text([]byte(document)))
}

func object(v map[string]any) map[string]any {
	out := make(map[string]any, len(v))
	// {name: DB_PASSWORD, value: ...} of containers, {key: request.headers[...],
	// values: ...} of policies.
	about := ""
	for _, member := range []string{"name", "key"} {
		if text, ok := v[member].(string); ok {
			about = text
		}
	}
	for name, member := range v {
		switch {
		case slices.Contains(dropped, name):
		case slices.Contains([]string{"value", "values", "notValues"}, name) && secret(about), secret(name):
			out[name] = hidden(name, member)
		case v["kind"] == "Secret" && (name == "data" || name == "stringData"), name == "jwks":
			out[name] = hidden(name, member)
		default:
			out[string(Text([]byte(name)))] = Object(member)
		}
	}
	return out
}

func secret(name string) bool { return named.MatchString(name) && !pointed.MatchString(name) }

// hidden keeps the shape of a value: whether there was one, and how many. Truths
// stay, and numbers that are none to guess by, as their name says.
func hidden(name string, value any) any {
	switch v := value.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, member := range v {
			out[name] = hidden(name, member)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = hidden(name, item)
		}
		return out
	case bool, nil:
		return v
	case string:
		if v == "" {
			return v
		}
		return redacted
	}
	if counted.MatchString(name) || pointed.MatchString(name) {
		return value
	}
	return redacted
}

// Document is a document without what must stay secret: JSON by its members,
// anything else as text.
func Document(text []byte) []byte {
	value, ok := decode(text)
	if !ok {
		return Text(text)
	}
	out, err := json.MarshalIndent(Object(value), "", "  ")
	if err != nil {
		return Text(text)
	}
	return append(out, '\n')
}

// decode reads one value of JSON that is all of a text.
func decode(text []byte) (value any, ok bool) {
	in := json.NewDecoder(bytes.NewReader(text))
	in.UseNumber() // large ones stay what they are
	err := in.Decode(&value)
	return value, err == nil && len(bytes.TrimSpace(text[in.InputOffset():])) == 0
}

// Command is a command line without what must stay secret.
func Command(arguments []string) string {
	all := make([]any, len(arguments))
	for i, argument := range arguments {
		all[i] = argument
	}
	return strings.TrimSuffix(fmt.Sprintln(Object(all).([]any)...), "\n") //nolint:forcetypeassert // a list stays one
}
