import sys, time, torch
from pathlib import Path
import train
from gorl_robotics.display import Display
from gorl_robotics.config import parse_arguments, resolve
from gorl_robotics import run_folder
from gorl_robotics.refit import refit
t0=time.time()
c=resolve(parse_arguments(sys.argv[1:]))
tr=train.Trainer(c, run_folder.create(c), Display('probe',1,1))
sync=torch.cuda.synchronize
print("built", time.time()-t0)
def timed(name, fn, n, unit=1):
    for _ in range(3): fn()
    sync(); t=time.time()
    for _ in range(n): fn()
    cpu=time.time()-t; sync(); dt=(time.time()-t)/n
    print(f"{name}: {dt*1e3:.3f} ms (cpu launch {cpu/n*1e3:.3f})", f"{unit/dt/1e6:.3f} M/s" if unit>1 else ""); return dt
N=c.num_envs
timed("physics", tr.env.physics, 300, N)
print("time to first", time.time()-t0)
timed("act identity", tr.collector._act, 100) if False else None
timed("collect identity", tr.collector.collect, 5, N*32)
timed("refresh_starts", tr.env.refresh_starts, 10)
timed("update", lambda: tr.learner.update(tr.collector.rollout), 5)
timed("load", lambda: tr.learner._load(tr.collector.rollout), 5)
timed("minibatch", lambda: (tr.learner._index.zero_(), tr.learner._minibatch_update()), 50)
tr.policy.generative=True; tr.collector.recapture()
timed("collect flow", tr.collector.collect, 5, N*32)
def act():
    tr.collector._t.zero_(); tr.collector._act()
def fin():
    tr.collector._t.zero_(); tr.collector._finish()
timed("act flow", act, 200); timed("finish", fin, 200)
t=time.time(); o=torch.randn(1000,4096,15,device="cuda"); a=torch.randn(1000,4096,4,device="cuda")
print(refit(tr.policy.decoder,o,a,c.refit,tr.generator)); sync(); print("refit", time.time()-t)
t=time.time(); tr.evaluator(); sync(); print("evaluate", time.time()-t)
t=time.time(); tr.evaluator(); sync(); print("evaluate again", time.time()-t)
print("memory", torch.cuda.max_memory_allocated()/1e9, torch.cuda.mem_get_info())
