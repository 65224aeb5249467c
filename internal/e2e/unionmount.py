"""Runs unionmount-testsuite, from its directory, to the end of every test file.

The suite's own "run" stops at the first subtest that fails. This driver uses its modules and goes on, so that a run
gives totals and the list of all failing cases:

    unionmount.py MOUNTER OPTS --ov[=LAYERS] [--samefs | --maxfs=N] [--xino] [--meta] [--verify] [--ts=1] [TEST...]

MOUNTER is "kernel" for overlayfs; anything else mounts file system type fuse.union. A line "FAIL test:subtest: error"
is printed for every failing case, and "TOTAL x passed, y failed" at the end.
"""

import ast
import inspect
import io
import os
import sys
import traceback
import types

sys.path.insert(0, os.getcwd())

from context import test_context  # noqa: E402
from mount_union import mount_union  # noqa: E402
from set_up import set_up  # noqa: E402
from settings import config  # noqa: E402
from tool_box import TestError  # noqa: E402
from unmount_union import unmount_union  # noqa: E402


class Run:
    """One configuration of the suite and what came out of it."""

    def __init__(self, mounter, opts, args):
        if opts:
            os.environ["UNIONMOUNT_MNTOPTIONS"] = opts
        self.cfg = config("run")
        self.cfg.set_testing_overlayfs()
        self.slash = False
        self.max_layers = 0
        self.names = []
        self.passed = 0
        self.failed = []
        kernel = mounter == "kernel"
        if kernel:
            self.cfg.add_mntopt("redirect_dir=on")
        else:
            self.cfg.set_fusefs("union")
        for arg in args:
            self.option(arg, kernel)

    def option(self, arg, kernel):
        """Applies one word of the configuration."""
        key, _, value = arg.partition("=")
        if key == "--ov":
            self.max_layers = int(value or 0)
        elif key == "--samefs":
            self.cfg.set_maxfs(-1)
        elif key == "--maxfs":
            self.cfg.set_maxfs(int(value))
        elif key == "--verify":
            self.cfg.set_verify()
            if kernel:
                self.cfg.add_mntopt("index=on")
        elif key == "--xino":
            self.cfg.set_xino()
            if kernel:
                self.cfg.add_mntopt("xino=on")
        elif key == "--meta":
            self.cfg.set_metacopy()
            self.cfg.add_mntopt("metacopy=on")
        elif key == "--ts":
            self.slash = value == "1"
        elif arg.startswith("-"):
            sys.exit("unknown word: " + arg)
        else:
            self.names.append(arg)

    def all_names(self):
        """Lists the tests that the suite's run script would run, in its order, with directory renames."""
        tree = ast.parse(open("run", encoding="utf-8").read())
        names = []
        for node in ast.walk(tree):
            value = None
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "tests":
                value = node.value
            elif isinstance(node, ast.AugAssign) and getattr(node.target, "id", "") == "tests":
                value = node.value
            if isinstance(value, ast.List):
                names += [ast.literal_eval(item) for item in value.elts]
        return [name for name in names if name != "rename-exdev"]

    def subtests(self, name):
        """Returns the subtests of a test file, in the order of their definition."""
        script = __import__("tests." + name, globals(), locals(), ["subtests"])
        found = [
            func
            for key, func in vars(script).items()
            if key.startswith("subtest_") and isinstance(func, types.FunctionType)
        ]
        return sorted(found, key=lambda func: inspect.getsourcelines(func)[1])

    def test(self, name, rotate):
        """Runs one test file, with or without rotation of the upper into the lowers."""
        label = name + (" (rotating)" if rotate else "")
        subtests = self.subtests(name)
        ctx = test_context(self.cfg, self.slash, False, rotate, self.max_layers)
        try:
            set_up(ctx)
            mount_union(ctx)
        except Exception as err:  # one test that cannot be set up shall not end the run
            self.fail(label + ":setup", err, count=len(subtests))
            self.clean()
            return
        for index, func in enumerate(subtests):
            line = inspect.getsourcelines(func)[1]
            case = "%s:%s:%d" % (label, func.__name__, line)
            try:
                ctx.begin_test(inspect.getfile(func), line, func.__doc__ or "")
                func(ctx)
                self.passed += 1
            except (TestError, OSError, AssertionError, AttributeError, KeyError) as err:
                self.fail(case, err)
                os.closerange(3, 1024)  # what the subtest had open would keep the union busy
            except RuntimeError as err:  # a mount or umount failed: nothing after it can be trusted
                self.fail(case, err, count=len(subtests) - index)
                self.clean()
                return
        try:
            unmount_union(ctx)
        except RuntimeError as err:
            self.fail(label + ":unmount", err)
            self.clean()

    def fail(self, case, err, count=1):
        """Notes a failing case; count is more than one where it takes others with it."""
        traceback.print_exc(file=sys.stdout)
        note = "" if count == 1 else " (and the %d cases after it)" % (count - 1)
        self.failed += [case] * count
        print("FAIL %s: %s%s" % (case, " ".join(str(err).split()), note), flush=True)

    def clean(self):
        """Unmounts whatever a broken test left."""
        top = [self.cfg.union_mntroot(), self.cfg.upper_mntroot()]
        mounts = [line.split()[1] for line in io.open("/proc/mounts", encoding="utf-8")]
        for path in reversed(mounts):
            if path == top[0] or path.startswith(top[1] + "/"):
                os.system("umount -l " + path)

    def run(self):
        """Runs everything; returns the exit status."""
        for name in self.names or self.all_names():
            for rotate in [True, False] if self.max_layers else [False]:
                print("*** %s%s" % (name, " (rotating)" if rotate else ""), flush=True)
                self.test(name, rotate)
        print("TOTAL %d passed, %d failed" % (self.passed, len(self.failed)), flush=True)
        return 1 if self.failed else 0


if __name__ == "__main__":
    sys.exit(Run(sys.argv[1], sys.argv[2], sys.argv[3:]).run())
