package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/datastore"
	"github.com/atollhq/atoll/pkg/formation"
	"github.com/atollhq/atoll/pkg/kube/apiserver"
	"github.com/atollhq/atoll/pkg/kube/controllers"
	"github.com/atollhq/atoll/pkg/kube/election"
	"github.com/atollhq/atoll/pkg/kube/metrics"
	"github.com/atollhq/atoll/pkg/network/servicelb"
	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/run"
)

// RunServer runs a server until ctx ends or a part fails that cannot be started again.
func (n *Node) RunServer(ctx context.Context) error {
	began := time.Now()
	if err := n.prepare(ctx); err != nil {
		return err
	}
	set, err := pki.Ensure(n.cfg.DataDir, n.subject(), n.clock, n.log)
	if err != nil {
		if cause := <-n.machine; cause != nil { // such as a data folder that cannot be written
			return cause
		}
		return err
	}
	n.notePKI(set)
	if err := n.ensureTokens(set.CAHash); err != nil {
		return err
	}
	if err := writeServerFiles(n.cfg, n.paths); err != nil {
		return err
	}
	if err := writeAdminKubeconfig(n.cfg, n.paths); err != nil {
		return err
	}
	if err := <-n.machine; err != nil { // before the port is taken, which is among the checks
		return err
	}
	listener, err := n.listen(ctx)
	if err != nil {
		return err
	}
	mux := formation.NewMux(listener, n.log)
	if err := n.connectNode(); err != nil {
		return err
	}
	if n.asController, err = connect(n.paths.ControllerKubeconfig); err != nil {
		return err
	}
	n.group.Log = n.log
	n.group.Add(n.statusPage(began))
	n.group.Add(n.renewer(), run.Restartable())
	n.group.Add(clockWatch(time.Now, time.Minute))
	n.group.Add(mux)
	supervisor, err := n.supervisor(mux)
	if err != nil {
		return err
	}
	n.group.Add(supervisor)
	unpacked, loader := n.addRuntime(&n.group)
	store := n.group.Add(n.datastore())
	api := n.group.Add(apiserver.New(apiserver.Config{
		Args: apiServerArgs(n.cfg, n.paths, n.addr, "unix://"+n.paths.datastoreSocket), UserArgs: n.cfg.APIServerArgs, Listener: mux.API(),
	}, n.log), run.Needs(store), run.StopWithin(8*time.Second))
	site, err := n.manifestsPart()
	if err != nil {
		return err
	}
	n.troubles = append(n.troubles, site.Problems)
	// The rights of our own parts are among the manifests, so those parts wait for them.
	own := n.group.Add(site, run.Needs(api), run.Restartable())
	if err := n.addControllers(api); err != nil {
		return err
	}
	n.addWorkload(&n.group, unpacked, loader, api, own)
	n.addServices(own)
	n.group.Add(n.sharedInformers(), run.Needs(own))
	n.group.Add(n.readiness(began), run.Needs(api))
	return n.group.Run(ctx)
}

func (n *Node) ensureTokens(caHash string) error {
	server, err := n.cfg.JoinToken()
	if err != nil {
		return err
	}
	agent, err := n.cfg.JoinAgentToken()
	if err != nil {
		return err
	}
	_, _, err = pki.EnsureTokens(n.cfg.DataDir, caHash, server.Reveal(), agent.Reveal())
	return err
}

// notePKI keeps what certificates and clock need of a person for the status page.
func (n *Node) notePKI(set pki.Set) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range set.Problems {
		n.log.Warn(p.Text, "try", p.Remedy)
	}
	n.pkiNow = set.Problems
}

// renewer keeps the certificates valid while the process runs. Their readers watch the files; only the kubeconfig that people
// use holds copies.
func (n *Node) renewer() run.Component {
	keeper := pki.NewRenewer(n.cfg.DataDir, n.subject, func(set pki.Set) {
		n.notePKI(set)
		if err := writeAdminKubeconfig(n.cfg, n.paths); err != nil {
			n.log.Warn("the administrator's kubeconfig keeps its old certificate", "err", err)
		}
	}, n.clock, n.log)
	n.troubles = append(n.troubles, asTrouble(keeper.Problem), asTrouble(n.clock.Problem))
	return keeper
}

// asTrouble shows what a part has to say on the status page.
func asTrouble(problem func() (pki.Problem, bool)) func() []error {
	return func() []error {
		if p, bad := problem(); bad {
			return []error{remedy.Wrap(errors.New(p.Text), "%s", p.Remedy)}
		}
		return nil
	}
}

func (n *Node) datastore() run.Component {
	return datastore.New(datastore.Config{
		Dir: n.paths.datastore, Socket: n.paths.datastoreSocket, Endpoint: n.cfg.DatastoreEndpoint.Reveal(),
		CAFile: n.cfg.DatastoreCAFile, CertFile: n.cfg.DatastoreCertFile, KeyFile: n.cfg.DatastoreKeyFile,
	}, n.log)
}

// supervisor lets agents join this server.
func (n *Node) supervisor(mux *formation.Mux) (run.Component, error) {
	password, err := pki.EnsureNodePassword(n.cfg.DataDir, n.log)
	if err != nil {
		return nil, err
	}
	secrets := formation.NewSecrets(n.asController.CoreV1())
	facts := formation.Cluster{
		ClusterCIDRs: []netip.Prefix{n.cfg.ClusterCIDR}, ServiceCIDRs: []netip.Prefix{n.cfg.ServiceCIDR},
		ClusterDNS: []netip.Addr{n.cfg.DNSAddress()}, Domain: n.cfg.ClusterDomain, FlannelBackend: n.cfg.FlannelBackend,
		APIServers: []string{"https://" + net.JoinHostPort(n.cfg.AdvertisedAddress(n.addr).String(), strconv.Itoa(n.cfg.AdvertisedPort()))},
	}
	return formation.NewSupervisor(formation.SupervisorConfig{
		DataDir: n.cfg.DataDir, Listener: mux.Supervisor(), NodeName: n.cfg.NodeName, Password: password,
		Cluster: func() formation.Cluster { return facts }, Tokens: secrets, Passwords: secrets, Clock: n.clock,
	}, n.log), nil
}

// listen takes the port before anything else starts: a port that is held is the commonest mistake and should cost no wait.
func (n *Node) listen(ctx context.Context) (net.Listener, error) {
	addr := net.JoinHostPort(n.cfg.BindAddress.String(), strconv.Itoa(n.cfg.HTTPSPort))
	l, err := (&net.ListenConfig{KeepAlive: 30 * time.Second}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, remedy.Wrap(fmt.Errorf("listen on %s: %w", addr, err), "stop the program that holds port %d (`ss -ltnp` names it), or set --https-listen-port", n.cfg.HTTPSPort)
	}
	return l, nil
}

// subject is what the certificates of this server say about it.
func (n *Node) subject() pki.Subject {
	addrs := append([]netip.Addr{n.addr}, n.cfg.NodeIP...)
	addrs = append(addrs, n.cfg.NodeExternalIP...)
	if n.cfg.AdvertiseAddress.IsValid() {
		addrs = append(addrs, n.cfg.AdvertiseAddress)
	}
	return pki.Subject{
		NodeName: n.cfg.NodeName, Addresses: addrs, ServiceIPs: []netip.Addr{n.cfg.APIServiceIP()},
		Domain: n.cfg.ClusterDomain, ExtraNames: n.cfg.TLSSAN, APIServer: n.cfg.LocalURL(),
	}
}

// addControllers adds what runs on one server of the site at a time. Each stands for election with the identity of its work,
// to which upstream's roles give the lease of its name.
func (n *Node) addControllers(api *run.Handle) error {
	for _, part := range []struct {
		name, kubeconfig string
		work             election.Work
	}{
		{"kube-controller-manager", n.paths.ControllerManagerKubeconfig, controllers.Manager(controllerManagerArgs(n.cfg, n.paths), n.cfg.ControllerManagerArgs)},
		{"kube-scheduler", n.paths.SchedulerKubeconfig, controllers.Scheduler(schedulerArgs(n.cfg, n.paths), n.cfg.SchedulerArgs)},
	} {
		client, err := connect(part.kubeconfig)
		if err != nil {
			return err
		}
		n.group.Add(election.New(election.Config{Name: part.name, Identity: n.cfg.NodeName, Client: client, Fatal: controllers.Stuck}, part.work, n.log), run.Needs(api))
	}
	return nil
}

// addServices adds what a server offers beyond upstream's components.
func (n *Node) addServices(site *run.Handle) {
	if !n.cfg.Disabled(config.MetricsServer) {
		n.group.Add(metrics.New(metrics.Config{
			Kubeconfig: n.paths.MetricsKubeconfig, CertFile: n.paths.Local, KeyFile: n.paths.Local, KubeletCA: n.paths.KubeletCA.Cert,
			ClientCA: n.paths.ClientCA.Cert, RequestHeaderCA: n.paths.RequestHeaderCA.Cert, RequestHeaderName: pki.UserFrontProxy,
		}, n.log), run.Needs(site), run.Restartable())
	}
	if !n.cfg.Disabled(config.ServiceLB) {
		// Every server computes the same; one would do, but the second changes nothing and an election costs writes.
		n.group.Add(servicelb.New(servicelb.Config{Client: n.asController, Factory: n.informers, Log: n.log}), run.Needs(site), run.Restartable())
	}
}
