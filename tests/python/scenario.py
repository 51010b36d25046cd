#!/usr/bin/env python3
"""The gateway as a caller in Python sees it: list, stream, kill.

Uses nothing of this project but `proto/`: the stubs are made from it, with the
stock tools. Ends with 0 when all held; otherwise says what did not, and ends
with 1.

    scenario.py --gateway unix:/run/ovfleet/ovfleet.sock [--expect NAME]... [--kill NAME]

With `--expect` (once per client) the fleet is expected to stand still and to
have exactly these clients. `--kill` names whom to kill: by default the first
client listed. They are killed with RESTART and may come back.
"""

import argparse
import pathlib
import sys
import tempfile
import time
import uuid
from collections import Counter
from importlib import resources

import grpc
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
DEADLINE_S = 20


def generate_stubs(directory):
    files = sorted(str(path) for path in PROTO.glob("ovfleet/v1/*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    arguments = [f"-I{PROTO}", f"-I{well_known}"]
    arguments += [f"--python_out={directory}", f"--grpc_python_out={directory}"]
    if protoc.main(["protoc", *arguments, *files]) != 0:
        sys.exit("the contract in proto/ could not be compiled")
    sys.path.insert(0, directory)


def check(holds, otherwise):
    if not holds:
        sys.exit(f"python scenario: {otherwise}")


def key(ref):
    return (ref.gateway, ref.instance, ref.generation, ref.cid)


def list_clients(fleet, **request):
    """All clients, through every page, and the as_of of the list."""
    clients, token, as_of = [], "", None
    while True:
        page = fleet.ListClients(
            ListClientsRequest(page_size=2, page_token=token, **request), timeout=DEADLINE_S
        )
        check(not page.unreachable, f"some instance could not be asked: {page.unreachable}")
        check(as_of in (None, page.as_of), "two pages of one list carry different as_of")
        clients, token, as_of = [*clients, *page.clients], page.next_page_token, page.as_of
        if not token:
            check(as_of.cursor, "a list carries no cursor")
            refs = Counter(key(client.ref) for client in clients)
            check(max(refs.values(), default=1) == 1, f"a client is on two pages: {refs}")
            return clients, as_of


def expect_error(call, code, reason):
    """The call fails with this code, and its details with this reason."""
    try:
        call()
    except grpc.RpcError as error:
        check(error.code() == code, f"expected {code}, got {error.code()}: {error.details()}")
        status = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
        info = ErrorInfo()
        found = [d for d in status.details if d.Is(ErrorInfo.DESCRIPTOR) and d.Unpack(info)]
        check(found, f"{code} without an ErrorInfo: {status}")
        check(
            (info.domain, info.reason) == ("ovfleet", reason),
            f"expected reason {reason}, got {info.domain}/{info.reason}",
        )
    else:
        check(False, f"expected {code} ({reason}), got an answer")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--gateway", required=True, metavar="ADDRESS")
    arguments.add_argument("--expect", action="append", metavar="NAME")
    arguments.add_argument("--kill", metavar="NAME")
    options = arguments.parse_args()

    # Over a Unix socket grpcio sends the percent-encoded path as authority, which is
    # no valid one: the gateway's HTTP/2 resets the stream.
    localhost = [("grpc.default_authority", "localhost")]
    channel = grpc.insecure_channel(options.gateway.removeprefix("http://"), options=localhost)
    fleet = FleetServiceStub(channel)
    events = EventServiceStub(channel)
    control = ControlServiceStub(channel)
    everywhere = InstanceSelector(all=True)

    # List.
    clients, as_of = list_clients(fleet)
    names = Counter(client.common_name for client in clients if not client.half_open)
    if options.expect is not None:
        check(names == Counter(options.expect), f"expected {options.expect}, listed {names}")
    check(names, "the fleet has no clients")
    name = options.kill or next(client.common_name for client in clients if client.common_name)
    summary = fleet.GetSummary(GetSummaryRequest(), timeout=DEADLINE_S)
    check(summary.totals.instances > 0, "the summary counts no instance")

    # What must be refused, and why.
    someone = ClientFilter(common_names=[name])
    expect_error(
        lambda: control.KillClients(KillClientsRequest(filter=someone), timeout=DEADLINE_S),
        grpc.StatusCode.INVALID_ARGUMENT,
        "SELECTOR_EMPTY",
    )

    # Stream from the list's own cursor: nothing between the two can be missed.
    stream = events.StreamEvents(
        StreamEventsRequest(cursor=as_of.cursor, kinds=["client.*", "action.*"]),
        timeout=DEADLINE_S,
    )

    # Kill: the plan first, then exactly that plan.
    plan = control.KillClients(
        KillClientsRequest(selector=everywhere, filter=someone, validate_only=True),
        timeout=DEADLINE_S,
    )
    check(plan.validate_only and plan.results, f"nobody of the name {name!r} is in the plan")
    check(
        all(r.outcome == Outcome.OUTCOME_PLANNED for r in plan.results),
        f"a plan has other outcomes: {plan.results}",
    )
    if options.expect is not None:
        check(
            len(plan.results) == names[name],
            f"{len(plan.results)} planned, {names[name]} listed",
        )
    request_id = f"python-{uuid.uuid4()}"
    kill = KillClientsRequest(
        selector=everywhere,
        filter=ClientFilter(refs=[result.ref for result in plan.results]),
        wait=True,
        request_id=request_id,
    )
    answer = control.KillClients(kill, timeout=DEADLINE_S)
    check(
        Counter(key(r.ref) for r in answer.results) == Counter(key(r.ref) for r in plan.results),
        f"planned {plan.results}, killed {answer.results}",
    )
    outcomes = Counter(Outcome.Name(result.outcome) for result in answer.results)
    still = {"OUTCOME_CONFIRMED"}
    living = {"OUTCOME_CONFIRMED", "OUTCOME_ALREADY_GONE"}
    check(
        outcomes.keys() <= (still if options.expect is not None else living),
        f"outcomes of the kill: {outcomes}",
    )

    # The same request again returns the first answer and kills nobody new.
    again = control.KillClients(kill, timeout=DEADLINE_S)
    check(again.results == answer.results, "a repeated request id gave another answer")

    # The stream told of each of them, and why.
    waiting = {key(r.ref) for r in answer.results if r.outcome == Outcome.OUTCOME_CONFIRMED}
    sequence = 0
    try:
        for frame in stream:
            for event in frame.batch.events:
                check(event.sequence > sequence, "events out of order")
                sequence = event.sequence
                if event.kind != "client.disconnected" or key(event.client.ref) not in waiting:
                    continue
                waiting.remove(key(event.client.ref))
                check(
                    event.disconnected.cause == DisconnectCause.DISCONNECT_CAUSE_KILLED
                    and event.disconnected.caused_by.request_id == request_id,
                    f"a killed client left for another reason: {event}",
                )
            if not waiting:
                break
    except grpc.RpcError as error:
        check(False, f"the stream ended, {waiting} not seen to leave: {error}")
    stream.cancel()
    check(not waiting, f"the stream ended, {waiting} not seen to leave")

    # And none of them is listed any more, whoever came back under a new ref.
    gone = {key(result.ref) for result in answer.results}
    clients, _ = list_clients(fleet)
    check(not gone & {key(client.ref) for client in clients}, "a killed client is still listed")
    print(f"python scenario: listed {sum(names.values())}, killed {len(gone)} ({name!r}), all seen")


if __name__ == "__main__":
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as stubs:
        generate_stubs(stubs)
        from google.rpc.error_details_pb2 import ErrorInfo
        from google.rpc.status_pb2 import Status
        from ovfleet.v1.control_service_pb2 import KillClientsRequest, Outcome
        from ovfleet.v1.control_service_pb2_grpc import ControlServiceStub
        from ovfleet.v1.event_pb2 import DisconnectCause
        from ovfleet.v1.event_service_pb2 import StreamEventsRequest
        from ovfleet.v1.event_service_pb2_grpc import EventServiceStub
        from ovfleet.v1.fleet_service_pb2 import GetSummaryRequest, ListClientsRequest
        from ovfleet.v1.fleet_service_pb2_grpc import FleetServiceStub
        from ovfleet.v1.types_pb2 import ClientFilter, InstanceSelector

        main()
    print(f"python scenario: {time.monotonic() - started:.1f} s")
