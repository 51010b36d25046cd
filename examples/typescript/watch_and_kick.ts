import { credentials, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [gateway, name] = process.argv.slice(2);
const files = ["ovfleet/v1/event_service.proto", "ovfleet/v1/control_service.proto"];
const contract = loadSync(files, { includeDirs: ["proto"], longs: String, enums: String });
const { EventService, ControlService } = (loadPackageDefinition(contract) as any).ovfleet.v1;
const events = new EventService(gateway, credentials.createInsecure());
const control = new ControlService(gateway, credentials.createInsecure());

const filter = { commonNames: [name] };
const watch = events.StreamEvents({ now: true, kinds: ["client.established"], filter });
watch.on("data", ({ batch }: any) => {
  for (const { instance, client } of batch?.events ?? []) {
    const kick = { selector: { names: [instance] }, filter: { refs: [client.ref] }, mode: "KILL_MODE_HALT" };
    control.KillClients(kick, (error: Error | null, answer: any) => console.log(error ?? answer.results));
  }
});
