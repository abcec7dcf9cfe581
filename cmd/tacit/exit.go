package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// What the command exits with, the same for all that it can do.
const (
	exitFailed  = 1 // there is no answer
	exitFound   = 3 // the answer is one that somebody must do something about
	exitPartial = 4 // the answer lacks something
	exitAbsent  = 5 // of tacit ask, which is hidden: what was asked about is not there
)

// exitHelp is the page on it.
func exitHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the command exits with, and when",
		Long: `The command exits with the same codes whatever it is asked:

    0  There is an answer, it is complete, and nothing is wrong.
    1  There is no answer, or what was to be done was not: the standard error
       says why and what to do. Also what tacit audit verify exits with when
       somebody has changed the log.
    3  There is an answer, and it says that something is wrong:
         explain   the connection is denied, or may be
         replay    the candidates would newly deny something
         check     something is broken
         lint      there is something to say about the policies
    4  The answer is partial: a node gave none, or something was left out or
       cut, which the answer itself says, as "partial" and "missing" in JSON.
       Of a partial answer that would have been 3 it is 3, as what was found
       is true in any case.

tacit demo enter exits with the code of the command that it runs. Whoever ends
a command with Ctrl-C that goes on until then (tap, top, ui) has got what there
was: 0.`,
		Example: `  tacit explain --from shop/frontend --to shop/backend:8080; [ $? -eq 3 ] && echo denied`,
	}
}

// exitError ends the program with a code and without a message.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// absentError is that a proxy does not know what it was asked about.
type absentError struct {
	error
	lack error // why others that may know of it gave no answer
}

func (e absentError) Unwrap() error { return e.error }

// partialError is why an answer that was given is not complete.
type partialError struct{ error }

func (e partialError) Unwrap() error { return e.error }

// ended is the end of a command that has printed an answer: err is what kept it
// from that, lack why the answer is not complete, found that it says something is
// wrong.
func ended(cmd *cobra.Command, err, lack error, found bool) error {
	switch {
	case err != nil:
		return errors.Join(err, lack)
	case found && lack != nil:
		cmd.PrintErrln("tacit:", lack)
		return exitError(exitFound)
	case found:
		return exitError(exitFound)
	}
	return lack
}
