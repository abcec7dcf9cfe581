package load

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
)

// Command puts a load on as text says, a [Config] in JSON, and writes the
// [Result] in JSON. Of kind [Idle] it writes a line once it has its connections,
// and keeps them until in ends.
func Command(ctx context.Context, text string, in io.Reader, out io.Writer) error {
	var c Config
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return fmt.Errorf("the load's configuration: %w", err)
	}
	if c.Kind == Idle {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		return Hold(ctx, c.Address, c.Conns, func() {
			_, _ = fmt.Fprintln(out, "ready") // who is gone does not wait for it
			go func() {
				_, _ = in.Read(make([]byte, 1))
				cancel()
			}()
		})
	}
	result, err := Run(ctx, c)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(result)
}
