"""Write resnet_course/tested.json: of each requirement, the oldest and the newest version that CI runs. The oldest is its
lower bound; the newest is the highest of what is installed here and what is locked. `.ci/newest --keep` calls this"""
import json, sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path
from packaging.requirements import Requirement
from packaging.version import Version

top = Path(sys.argv[1])
ini = ConfigParser(delimiters=['='])
ini.read(top/'settings.ini', encoding='utf-8')
lines = (top/'.ci/requirements.txt').read_text(encoding='utf-8').splitlines()
locked = [Requirement(o.partition('\\')[0]) for o in lines if o[:1].isalnum()]

def newest(name):
    "Without what comes after a +, which says how it was built"
    here = [o for o in locked if o.name==name and (not o.marker or o.marker.evaluate())]   # others are for other Pythons
    found = [version(name), *(str(o.specifier).removeprefix('==') for o in here)]
    return str(max(Version(Version(o).public) for o in found))

tested = {r.name: [next(o.version for o in r.specifier if o.operator=='>='), newest(r.name)]
          for r in map(Requirement, ini['DEFAULT']['requirements'].split())}
(top/'resnet_course/tested.json').write_text(json.dumps(tested, indent=1)+'\n', encoding='utf-8')
