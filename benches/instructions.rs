//! The instructions and allocations of one call, counted by valgrind. See README.md beside this.

use gungraun::{Dhat, prelude::*};
use tokio::runtime::Runtime;
use tower_offload_benches::{
    cases::{self, Called},
    runtime,
};

/// Calls that are not counted, so that what is made once is there.
const WARM_UP: usize = 100;

/// The calls that are counted, and where they run.
struct Counted {
    runtime: Runtime,
    calls: Called,
}

impl Counted {
    fn new(group: &str, name: &str) -> Self {
        let case = cases::find(group, name);
        let runtime = runtime();
        run(&runtime, case.calls(case.requests(WARM_UP)));
        Self { calls: case.calls(case.requests(case.counted())), runtime }
    }

    fn run(self) -> Runtime {
        run(&self.runtime, self.calls);
        self.runtime
    }
}

fn run(runtime: &Runtime, calls: Called) {
    runtime.block_on(async { tokio::spawn(calls).await }).unwrap();
}

/// A group of the cases, and the names of those that are counted.
macro_rules! counted {
    ($($group:ident: $($name:ident)*;)*) => {
        $(
            #[library_benchmark]
            $(#[bench::$name(Counted::new(stringify!($group), stringify!($name)))])*
            fn $group(calls: Counted) -> Runtime {
                calls.run()
            }
        )*
        library_benchmark_group!(name = calls, benchmarks = [$($group),*]);
    };
}

counted! {
    ready: bare tower_timeout tower_http_timeout never after after_boxed table task_per_request;
    ready_ten_headers:
        bare tower_timeout tower_http_timeout never after after_boxed table task_per_request;
    ready_4k: bare tower_timeout tower_http_timeout never after after_boxed task_per_request;
    pending: bare tower_timeout tower_http_timeout never after after_boxed task_per_request;
    pending_ten_headers: bare tower_timeout tower_http_timeout never after after_boxed;
    pending_4k: bare tower_timeout tower_http_timeout never after after_boxed task_per_request;
    pending_upload: bare tower_timeout tower_http_timeout never after after_boxed;
    timer: bare tower_timeout tower_http_timeout never after after_boxed task_per_request;
    router_get:
        bare inside_tower_http_timeout inside_never inside_after inside_after_boxed
        around_tower_timeout around_tower_http_timeout
        around_never around_after around_after_boxed around_table;
    router_post:
        bare inside_tower_http_timeout inside_after around_tower_http_timeout
        around_never around_after around_after_boxed;
    detach: bare task_per_request always respond_async always_upload;
}

main!(
    config = LibraryBenchmarkConfig::default()
        // What is freed is at hand for what comes next, as in a server that has run for a while.
        // Without it requests that were built ahead are freed into bins that differ from case to case.
        .env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=65535:glibc.malloc.tcache_max=65536")
        // Whose allocation it is shows in the stack, and those of a task are deep.
        .tool(Dhat::with_args(["--num-callers=100"])),
    library_benchmark_groups = calls
);
