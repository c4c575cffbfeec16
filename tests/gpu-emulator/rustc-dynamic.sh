#!/usr/bin/env bash
# RUSTC_WORKSPACE_WRAPPER: link this workspace's crates dynamically, so that they can load a driver at run time. Crates from
# outside are the same in both kinds of programs and are compiled once; what cargo asks about files is answered for those.
case " $* " in *" --print"*) exec "$@" ;; esac
exec "${@/#target-feature=+crt-static/target-feature=-crt-static}"
