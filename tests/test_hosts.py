"Two machines with addresses of their own, in two network namespaces: they train one net; and a cable that is cut"
import json, shutil, subprocess, sys
from pathlib import Path
import pytest

def why_not():
    if missing:=[o for o in ('unshare','nsenter','ip') if not shutil.which(o)]: return f"{', '.join(missing)}: not here (util-linux, iproute2)"
    make = 'ip link add v1 type veth peer name v2'
    if subprocess.run(['unshare','-rn','sh','-c',make], capture_output=True).returncode: return 'no networks of one\'s own can be made here'

def two_hosts(drawn, tmp_path, *options):
    if why:=why_not(): pytest.skip(why)
    p = subprocess.run(['unshare','-rn',sys.executable,Path(__file__).with_name('two_hosts.py'),drawn,tmp_path,*options],
                       capture_output=True, text=True, timeout=900)
    assert p.returncode==0, p.stderr[-2000:]
    return json.loads(p.stdout.splitlines()[-1])

def the_record(tmp_path):
    "There is one, on the first machine's disk"
    assert [o.parent.name for o in tmp_path.glob('disk*/*.json')]==['disk0']
    return json.loads(next((tmp_path/'disk0').glob('*.json')).read_text())

def test_two_hosts_train(drawn, tmp_path):
    said = two_hosts(drawn, tmp_path)['end']
    assert [o['rc'] for o in said]==[0,0], said
    rec = the_record(tmp_path)
    assert rec['complete'] and rec['processes']==2 and 'accuracy' in said[0]['out'] and not said[1]['out'].strip()

@pytest.mark.faults('a cable is cut between two machines')
@pytest.mark.long
def test_a_cut_link_ends_both(drawn, tmp_path):
    "Each machine says so, and once the link is mended the run goes on"
    said = two_hosts(drawn, tmp_path, 'cut')
    for o in said['cut']: assert o['rc'] and 'another process of this run has ended, or cannot be reached' in o['err'], o
    assert [o['rc'] for o in said['end']]==[0,0], said['end']
    rec = the_record(tmp_path)
    assert rec['complete'] and [o['processes'] for o in rec['parts']]==[2,2] and rec['parts'][1]['epoch']>0
