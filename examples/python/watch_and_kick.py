import sys
import grpc
from ovfleet.v1 import control_service_pb2 as control, event_service_pb2 as events
from ovfleet.v1.control_service_pb2_grpc import ControlServiceStub
from ovfleet.v1.event_service_pb2_grpc import EventServiceStub

gateway, name = sys.argv[1:]
channel = grpc.insecure_channel(gateway)
watch = events.StreamEventsRequest(now=True, kinds=["client.established"])
watch.filter.common_names.append(name)
for frame in EventServiceStub(channel).StreamEvents(watch):
    for event in frame.batch.events:
        kick = control.KillClientsRequest(mode=control.KILL_MODE_HALT)
        kick.selector.names.append(event.instance)
        kick.filter.refs.append(event.client.ref)
        print(ControlServiceStub(channel).KillClients(kick).results, flush=True)
