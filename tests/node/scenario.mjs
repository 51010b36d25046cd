#!/usr/bin/env node
// The gateway as a caller in JavaScript sees it: list, stream, kill.
//
// Uses nothing of this project but `proto/`, read by the stock loader. Ends with
// 0 when all held; otherwise says what did not, and ends with 1.
//
//     scenario.mjs --gateway unix:/run/ovfleet/ovfleet.sock [--expect NAME]... [--kill NAME]
//
// With `--expect` (once per client) the fleet is expected to stand still and to
// have exactly these clients. `--kill` names whom to kill: by default the first
// client listed. They are killed with RESTART and may come back.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const DEADLINE_MS = 20_000;
const { values: options } = parseArgs({
  options: {
    gateway: { type: "string" },
    expect: { type: "string", multiple: true },
    kill: { type: "string" },
  },
});
assert(options.gateway, "--gateway ADDRESS is needed");

const definition = loadSync(
  ["control_service", "event_service", "fleet_service"].map((name) => `ovfleet/v1/${name}.proto`),
  {
    includeDirs: [fileURLToPath(new URL("../../proto", import.meta.url))],
    // Numbers of JavaScript are too small for uint64, hence strings.
    longs: String,
    enums: String,
    keepCase: true,
    defaults: true,
    oneofs: true,
  },
);
const { v1 } = grpc.loadPackageDefinition(definition).ovfleet;
const address = options.gateway.replace(/^http:\/\//, "");
const [fleet, events, control] = [v1.FleetService, v1.EventService, v1.ControlService].map(
  (Service) => new Service(address, grpc.credentials.createInsecure()),
);

const deadline = () => ({ deadline: Date.now() + DEADLINE_MS });
const key = (ref) => `${ref.gateway}/${ref.instance}/${ref.generation}/${ref.cid}`;

// One unary call as a promise.
const call = (service, method, request) =>
  new Promise((resolve, reject) => {
    service[method](request, deadline(), (error, answer) => (error ? reject(error) : resolve(answer)));
  });

// All clients, through every page, and the as_of of the list.
async function listClients() {
  const clients = [];
  let page = { next_page_token: "" };
  do {
    const previous = page.as_of;
    page = await call(fleet, "ListClients", { page_size: 2, page_token: page.next_page_token });
    assert.deepEqual(page.unreachable, [], "some instance could not be asked");
    if (previous) assert.deepEqual(page.as_of, previous, "two pages of one list, two as_of");
    clients.push(...page.clients);
  } while (page.next_page_token);
  assert(page.as_of.cursor, "a list carries no cursor");
  assert.equal(new Set(clients.map((c) => key(c.ref))).size, clients.length, "a client on two pages");
  return { clients, asOf: page.as_of };
}

// List.
const { clients, asOf } = await listClients();
const names = clients.filter((c) => !c.half_open).map((c) => c.common_name);
if (options.expect) assert.deepEqual([...names].sort(), [...options.expect].sort(), "clients listed");
assert(names.length > 0, "the fleet has no clients");
const name = options.kill ?? names.find((n) => n !== "");
const summary = await call(fleet, "GetSummary", {});
assert(Number(summary.totals.instances) > 0, "the summary counts no instance");

// What must be refused.
const filter = { common_names: [name] };
await assert.rejects(
  call(control, "KillClients", { filter }),
  { code: grpc.status.INVALID_ARGUMENT },
  "a kill without a selector must be refused",
);

// Stream from the list's own cursor: nothing between the two can be missed.
const stream = events.StreamEvents({ cursor: asOf.cursor, kinds: ["client.*", "action.*"] }, deadline());
const seen = [];
let sequence = 0n;
stream.on("data", (frame) => {
  for (const event of frame.batch?.events ?? []) {
    assert(BigInt(event.sequence) > sequence, "events out of order");
    sequence = BigInt(event.sequence);
    seen.push(event);
  }
});
const failure = once(stream, "error").then(([error]) => error);

// Kill: the plan first, then exactly that plan.
const selector = { all: true };
const plan = await call(control, "KillClients", { selector, filter, validate_only: true });
assert(plan.validate_only && plan.results.length > 0, `nobody of the name ${name} is in the plan`);
for (const result of plan.results) assert.equal(result.outcome, "OUTCOME_PLANNED");
if (options.expect) assert.equal(plan.results.length, names.filter((n) => n === name).length);
const kill = {
  selector,
  filter: { refs: plan.results.map((result) => result.ref) },
  wait: true,
  request_id: `node-${randomUUID()}`,
};
const answer = await call(control, "KillClients", kill);
const refs = (results) => results.map((result) => key(result.ref)).sort();
assert.deepEqual(refs(answer.results), refs(plan.results), "planned and killed");
const possible = options.expect ? ["OUTCOME_CONFIRMED"] : ["OUTCOME_CONFIRMED", "OUTCOME_ALREADY_GONE"];
for (const result of answer.results) assert(possible.includes(result.outcome), JSON.stringify(result));

// The same request again returns the first answer and kills nobody new.
const again = await call(control, "KillClients", kill);
assert.deepEqual(again.results, answer.results, "a repeated request id gave another answer");

// The stream told of each of them, and why.
const waiting = new Set(
  answer.results.filter((r) => r.outcome === "OUTCOME_CONFIRMED").map((r) => key(r.ref)),
);
while (true) {
  for (const event of seen.splice(0)) {
    if (event.kind !== "client.disconnected" || !waiting.delete(key(event.client.ref))) continue;
    assert.equal(event.disconnected.cause, "DISCONNECT_CAUSE_KILLED");
    assert.equal(event.disconnected.caused_by.request_id, kill.request_id);
  }
  if (waiting.size === 0) break;
  const error = await Promise.race([failure, once(stream, "data").then(() => null)]);
  assert(!error, `the stream ended, ${[...waiting]} not seen to leave: ${error}`);
}
stream.cancel();

// And none of them is listed any more, whoever came back under a new ref.
const gone = new Set(refs(answer.results));
const after = await listClients();
assert(!after.clients.some((client) => gone.has(key(client.ref))), "a killed client is still listed");
console.log(`node scenario: listed ${names.length}, killed ${gone.size} (${name}), all seen`);
for (const service of [fleet, events, control]) service.close();
