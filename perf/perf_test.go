package main

import (
	"os"
	"testing"
	"time"
)

func TestProcesses(t *testing.T) {
	own := []int{os.Getpid()}
	before, err := processorTime(own)
	if err != nil {
		t.Fatal(err)
	}
	after := before
	for began := time.Now(); after <= before && time.Since(began) < time.Minute; { // to ask is work, too
		if after, err = processorTime(own); err != nil {
			t.Fatal(err)
		}
	}
	if after <= before {
		t.Errorf("processor time stays at %v", before)
	}
	if bytes, err := residentMemory(own); err != nil || bytes < 1<<20 || bytes > 1<<33 {
		t.Errorf("resident: %d bytes (%v)", bytes, err)
	}
	if _, err := processorTime([]int{0}); err == nil {
		t.Error("a process that is not there has processor time")
	}
}
