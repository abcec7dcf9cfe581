package capture
import ("testing";"net/netip";"os/exec";"time";"fmt";"os")
import "github.com/tacit-mesh/tacit/redirect/pods"
func TestDbg(t *testing.T) {
	pod, peer := newPair(t)
	echo(t, pod.listen(t, ":80"))
	n := newNode(t, pod)
	n.start(pods.BackendAuto)
	var cmd *exec.Cmd
	pod.do(t, func() error { cmd = exec.Command("tcpdump","-n","-i","any","tcp"); cmd.Stdout=os.Stdout; return cmd.Start() })
	time.Sleep(time.Second)
	for i := 0; i < 6; i++ {
	c, _ := peer.tryDial(netip.AddrPortFrom(pod4, 80))
	c.SetDeadline(time.Now().Add(2*time.Second))
	_, err := fmt.Fprintln(c, "x")
	b := make([]byte, 100)
	k, err := c.Read(b)
	fmt.Println("RESULT", i, c.LocalAddr(), string(b[:k]), err)
	if err != nil { fmt.Println(pod.run(t, "cat", "/proc/net/nf_conntrack")); fmt.Println(pod.run(t, "ss", "-tan")) }
	}
	cmd.Process.Kill(); cmd.Wait()
}
