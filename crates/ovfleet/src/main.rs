//! The ovfleet daemon and command line.

mod action;
mod args;
mod command;
mod definition;
mod demo;
mod describe;
mod failure;
mod gateway;
mod json;
mod listing;
mod logging;
mod manual;
mod output;
mod privileges;
mod rows;
mod selection;
mod serve;
mod service_manager;
mod signals;
mod standby;
mod start;
mod table;
mod terminal;
mod text;
mod value;
mod watchdog;

use std::process::ExitCode;

use crate::{
    args::{CallerArgs, Cli, Command},
    command::{
        actions, clients, events, instance, instances, inventory, kill, question, routes, signal,
        summary, watch,
    },
    failure::{Outcome, conclude},
    gateway::Gateway,
    output::Output,
};

/// Gives back within seconds what a large table took, keeps less for each session, and is quicker than the allocator of
/// glibc. How soon is set in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Whoever speaks TLS first must find it. Installing fails only when it is
    // installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Cli { caller, command } = args::parse();
    conclude(match command {
        Command::Serve(args) => serve::run(&args),
        Command::CheckConfig(args) => serve::check_config(&args),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { dir } => manual::man(dir.as_deref()),
        command => call(caller, command),
    })
}

/// The commands that call a gateway, `demo` its own one.
#[tokio::main]
async fn call(caller: CallerArgs, command: Command) -> Outcome {
    let mut output = Output::new(&caller);
    let output = &mut output;
    let connect = || Gateway::connect(&caller);
    match command {
        Command::Demo(args) => demo::run(args, caller, output).await,
        Command::Summary(args) => summary::run(&connect().await?, args, output).await,
        Command::Instances(args) => instances::run(&connect().await?, args, output).await,
        Command::Instance(command) => {
            inventory::check(&command)?;
            inventory::run(&connect().await?, command, output).await
        }
        Command::Reload(args) => inventory::reload(&connect().await?, args, output).await,
        Command::Clients(args) => clients::run(&connect().await?, args, output).await,
        Command::Routes(args) => routes::run(&connect().await?, args, output).await,
        Command::Events(args) => events::run(&connect().await?, args, output).await,
        Command::Watch(args) => watch::run(&connect().await?, args, output).await,
        Command::Kill(args) => {
            kill::check(&args)?;
            kill::run(&connect().await?, args, output).await
        }
        Command::Signal(args) => {
            signal::check(&args)?;
            signal::run(&connect().await?, args, output).await
        }
        Command::Actions(args) => actions::run(&connect().await?, args, output).await,
        Command::Exec(args) => instance::exec(&connect().await?, args, output).await,
        Command::Hold(args) => instance::hold(&connect().await?, args, output).await,
        Command::Verb(args) => instance::verb(&connect().await?, args, output).await,
        Command::Mute(args) => instance::mute(&connect().await?, args, output).await,
        Command::Log(args) => instance::log(&connect().await?, args, output).await,
        Command::State(args) => instance::state(&connect().await?, args, output).await,
        Command::Echo(args) => instance::echo(&connect().await?, args, output).await,
        Command::LoadStats(args) => instance::load_stats(&connect().await?, args, output).await,
        Command::Version(args) => instance::version(&connect().await?, args, output).await,
        Command::Pid(args) => instance::pid(&connect().await?, args, output).await,
        Command::ForgetPasswords(args) => {
            instance::forget_passwords(&connect().await?, args, output).await
        }
        Command::Questions(args) => question::questions(&connect().await?, args, output).await,
        Command::Answer(args) => question::answer(&connect().await?, args, output).await,
        Command::PushUpdate(args) => instance::push_update(&connect().await?, args, output).await,
        Command::Serve(_)
        | Command::CheckConfig(_)
        | Command::Completions { .. }
        | Command::Man { .. } => unreachable!("these call no gateway: see main"),
    }
}
