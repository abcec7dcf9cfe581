package suite

import (
	"os"
	"testing"
	"time"
)

func TestProcesses(t *testing.T) {
	own := []int{os.Getpid()}
	before, err := Processes(own)
	if err != nil {
		t.Fatal(err)
	}
	after := before
	for began := time.Now(); after.CPU <= before.CPU && time.Since(began) < time.Minute; { // to ask is work, too
		if after, err = Processes(own); err != nil {
			t.Fatal(err)
		}
	}
	if after.CPU <= before.CPU || after.Calls <= before.Calls {
		t.Errorf("used %+v, then %+v", before, after)
	}
	if after.Memory < 1<<20 || after.Memory > 1<<33 {
		t.Errorf("resident: %d bytes", after.Memory)
	}
	if _, err := Processes([]int{0}); err == nil {
		t.Error("a process that is not there has used something")
	}
}
