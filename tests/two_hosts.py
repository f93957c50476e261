"""Two machines, as far as a network can tell: `unshare -rn python two_hosts.py DATA OUT [cut]`. This process is on the first, with
the address 10.9.0.1; what `there` starts is on the second, 10.9.0.2, and a cable joins them. Each has a disk of its own"""
import json, os, signal, subprocess, sys, time
from pathlib import Path

data,out,cut = Path(sys.argv[1]),Path(sys.argv[2]),'cut' in sys.argv
minutes = 1.5   # a process waits so long for another one
second = subprocess.Popen(['unshare','-n','sleep','3600'])
there = ['nsenter','-t',str(second.pid),'-n']

def ip(*args, at=()): subprocess.run([*at, 'ip', *args], check=True)

def connect():
    while os.readlink(f'/proc/{second.pid}/ns/net')==os.readlink('/proc/self/ns/net'): time.sleep(.01)
    ip('link','add','eth0','type','veth','peer','name','eth0','netns',str(second.pid))
    for k,at in enumerate(([],there), 1):
        ip('addr','add',f'10.9.0.{k}/24','dev','eth0', at=at)
        for o in ('lo','eth0'): ip('link','set',o,'up', at=at)

def start(k, *options):
    "What a user types on machine `k`"
    env = dict(os.environ, OMP_NUM_THREADS='1', GLOO_SOCKET_IFNAME='eth0', FASTAI_HOME=str(out/f'home{k}'))
    torchrun = ['-W','ignore','-m','torch.distributed.run','--nnodes','2','--node_rank',str(k),'--nproc_per_node','1',
                '--master_addr','10.9.0.1','--master_port','29500']
    train = ['train','--recipe','tiny','--data',data,'--epochs','2','--precision','fp32','--out',out/f'disk{k}',*options]
    worker = Path(__file__).with_name('scale_worker.py')
    words = [*(there if k else []), sys.executable, *torchrun, worker, 'command', str(minutes), *train]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

def ended(hosts):
    res = [(*o.communicate(timeout=400), o.returncode) for o in hosts]
    return [dict(out=a, err=b, rc=rc) for a,b,rc in res]

connect()
hosts,said = [],{}
try:
    hosts = [start(k) for k in (0,1)]
    if cut:
        checkpoint = out/'disk0'/'resblock-tiny-s42.pt'
        while not checkpoint.exists() and hosts[0].poll() is None: time.sleep(.05)
        ip('link','set','eth0','down')
        said['cut'] = ended(hosts)
        ip('link','set','eth0','up')
        hosts = [start(k, '--resume') for k in (0,1)]
    said['end'] = ended(hosts)
finally:
    for p in hosts:
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
    second.kill()
print(json.dumps(said))
