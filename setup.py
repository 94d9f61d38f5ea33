"""The compiled variant, when ASTRANET_GEVENT_COMPILE asks for it; without that this adds nothing to pyproject.toml.

The modules named here are compiled from the sources that run as pure Python elsewhere; the ``.pxd`` files beside them give types to what
is hot. They lie beside their sources under the same names, and Python prefers them; astranet_gevent/builds.py can have it otherwise.
"""

from __future__ import annotations

import os
from distutils.errors import CCompilerError, CompileError, DistutilsExecError, DistutilsPlatformError

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# What a DATA frame passes on its way in and out, and what opening and closing a stream takes. Each is of one build in all that it imports
# from another, so those that have a .pxd are all here.
MODULES = (
    "astranet_gevent.address",
    "astranet_gevent.mesh",
    "astranet_gevent.node",
    "astranet_gevent.protocol.frame",
    "astranet_gevent.protocol.link",
    "astranet_gevent.protocol.routing",
    "astranet_gevent.protocol.stream",
    "astranet_gevent.protocol.window",
    "astranet_gevent.transport.busy_poll",
    "astranet_gevent.transport.conn",
    "astranet_gevent.transport.deadlines",
    "astranet_gevent.transport.link",
    "astranet_gevent.transport.listener",
    "astranet_gevent.transport.outlet",
    "astranet_gevent.transport.path",
    "astranet_gevent.transport.relay",
    "astranet_gevent.transport.send_queue",
    "astranet_gevent.transport.stream",
)

DIRECTIVES = {
    "language_level": 3,
    # Types come from the .pxd files alone: the hints in the sources are for readers and checkers, and change nothing.
    "annotation_typing": False,
    # Streams and links cannot be pickled, and should not get methods that look as if they could.
    "auto_pickle": False,
    # An attribute of what was never initialised raises AttributeError, as in pure Python, and does not end the process.
    "nonecheck": True,
}

# Debugging symbols of generated C are five times its code.
COMPILER_FLAGS = ["-g0"]


class BuildExtensions(build_ext):
    """Runs Cython when it is time to compile, not before: asking for the build's requirements works without it."""

    def run(self) -> None:
        from Cython.Build import cythonize

        made = cythonize(self.extensions, build_dir="build/cython", compiler_directives=DIRECTIVES)
        sources = {extension.name: extension.sources for extension in made}
        for extension in self.extensions:
            extension.sources = sources[extension.name]
        self.parallel = self.parallel or True  # as many at once as there are cores
        try:
            super().run()
        except (CCompilerError, DistutilsExecError, DistutilsPlatformError, OSError) as error:
            # Not left out silently: who asked for the compiled variant would measure the other one.
            raise CompileError(
                f"{error}\nASTRANET_GEVENT_COMPILE asks for the compiled variant. It needs a C compiler and the headers of Python "
                "(Debian and Ubuntu: apt install gcc python3-dev). Without that variable the package is pure Python and needs neither."
            ) from error


def extensions() -> list[Extension]:
    if os.environ.get("ASTRANET_GEVENT_COMPILE", "") in ("", "0"):
        return []
    sources = {name: name.replace(".", "/") + ".py" for name in MODULES}
    # What Python has no words for.
    sources["astranet_gevent._greenlet_memory"] = "astranet_gevent/_greenlet_memory.c"
    return [Extension(name, [source], extra_compile_args=COMPILER_FLAGS) for name, source in sources.items()]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtensions})
