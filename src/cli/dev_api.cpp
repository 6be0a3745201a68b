// The lab's own small API, on <run>/<lab>/lab.sock: faults, and programs in the front (docs/api.md, "Lab").

#include <csignal>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "api/answer.hpp"
#include "api/fields.hpp"
#include "cli/dev_cluster.hpp"
#include "os/file.hpp"
#include "wire/client.hpp"
#include "wire/server.hpp"

namespace yado::cli {
namespace asio = boost::asio;
using api::Fields;
using nlohmann::json;

struct LabApi::Impl {
  Impl(asio::io_context& context, DevCluster& of)
      : io(context),
        cluster(of),
        control(wire::Client::unix_socket(context, of.control_socket())),
        server(context, [this](const wire::Request& r, wire::Responder& p) { return serve(r, p); }, {}) {}

  asio::io_context& io;
  DevCluster& cluster;
  wire::Client control;
  wire::Server server;

  asio::awaitable<void> serve(const wire::Request& request, wire::Responder& responder) {
    if (request.method == "POST" && request.target == "/v1/exec") co_return co_await execute(request, responder);
    auto body = co_await dispatch(request);
    wire::Response response = body ? api::answer(*body) : api::answer(body.error());
    auto sent = co_await responder.respond(std::move(response));
    (void)sent;
  }

  asio::awaitable<Result<json>> dispatch(const wire::Request& request) {
    if (request.method == "GET" && request.target == "/v1/lab") co_return cluster.describe();
    if (request.method == "POST" && request.target == "/v1/faults") co_return co_await fault(request);
    if (request.method == "POST" && request.target == "/v1/heal") co_return co_await heal(request);
    co_return fail(Errc::not_found, "the lab has no {} {}", request.method, request.target);
  }

  asio::awaitable<Result<json>> fault(const wire::Request& request) {
    auto body = api::parse_json(request.body);
    if (!body) co_return std::unexpected(body.error());
    std::string kind;
    HostId host;
    WorkloadId workload;
    Status status;
    Fields(*body, "", status).required("kind", kind).optional("host", host).optional("workload", workload);
    if (status && host.empty() && workload.empty() && kind != "control")
      status = fail(Errc::invalid_argument, "\"{}\" needs a host, or a workload (its owner's host is meant)", kind);
    if (status && kind == "process" && workload.empty())
      status = fail(Errc::invalid_argument, "\"process\" needs a workload: its owner's processes are killed");
    if (!status) co_return std::unexpected(status.error());
    std::string instance;
    if (!workload.empty()) {
      wire::Request question;
      question.target = fmt::format("/v1/workloads/{}", workload);
      auto answer = co_await control.call(std::move(question), 5s);
      if (!answer) co_return context(answer.error(), "control");
      auto view = api::body_of(*answer);
      if (!view) co_return std::unexpected(view.error());
      const auto& owner = (*view)["owner"];
      if (!owner.is_object()) co_return fail(Errc::conflict, "{} runs nowhere", workload);
      if (host.empty()) host = HostId(owner.value("host", ""));
      instance = owner.value("instance", "");
    }
    auto at = cluster.inject(kind, host, instance);
    if (!at) co_return std::unexpected(at.error());
    co_return json{{"kind", kind}, {"host", host.str()}, {"at_ns", at->time_since_epoch().count()}};
  }

  asio::awaitable<Result<json>> heal(const wire::Request& request) {
    auto body = api::parse_json(request.body.empty() ? "{}" : request.body);
    if (!body) co_return std::unexpected(body.error());
    HostId host;
    Status status;
    Fields(*body, "", status).optional("host", host);
    if (!status) co_return std::unexpected(status.error());
    if (host.empty()) status = co_await cluster.heal_all();
    else status = co_await cluster.heal(host);
    if (!status) co_return std::unexpected(status.error());
    co_return json::object();
  }

  /// Output as it comes, then the status; a caller that goes away ends the program.
  asio::awaitable<void> execute(const wire::Request& request, wire::Responder& responder) {
    std::vector<std::string> command;
    HostId host = lab::Lab::front();
    std::string directory = "/";
    Status status;
    auto body = api::parse_json(request.body);
    if (body)
      Fields(*body, "", status).required("command", command).optional("host", host).optional("directory", directory);
    else
      status = std::unexpected(body.error());
    if (status && command.empty()) status = fail(Errc::invalid_argument, "command: is empty");
    auto pipe = os::make_pipe();
    if (status && !pipe) status = std::unexpected(pipe.error());
    std::optional<lab::HostProcess> process;
    if (status) {
      lab::SpawnOptions options;
      // No shell; env(1) finds the program in PATH and is nothing else than that.
      options.arguments = {"/usr/bin/env"};
      options.arguments.insert(options.arguments.end(), command.begin(), command.end());
      options.environment = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"};
      options.directory = directory;
      options.descriptors = {{pipe->write.get(), 1}, {pipe->write.get(), 2}};
      auto started = cluster.spawn(host, options);
      if (started)
        process.emplace(std::move(*started));
      else
        status = std::unexpected(started.error());
    }
    if (!status) {
      wire::Response refusal = api::answer(status.error());
      auto sent = co_await responder.respond(std::move(refusal));
      co_return (void)sent;
    }
    pipe->write.reset();
    asio::posix::stream_descriptor output(io, pipe->read.release());
    responder.on_closed([&] { (void)process->send(SIGTERM); });
    wire::Headers headers;
    headers.emplace_back("content-type", "application/x-ndjson");
    Status sent = co_await responder.start(200, std::move(headers));
    std::string piece(16 * 1024, '\0');
    for (bool more = true; more && sent;) {
      auto [error, bytes] = co_await output.async_read_some(asio::buffer(piece), asio::as_tuple(asio::use_awaitable));
      more = !error;
      if (bytes == 0) continue;
      const std::string line = api::dump(json{{"output", piece.substr(0, bytes)}}) + "\n";
      sent = co_await responder.write(line);
    }
    // Its output ended; it may take a little longer itself.
    asio::posix::stream_descriptor end(io, ::fcntl(process->fd(), F_DUPFD_CLOEXEC, 0));
    co_await end.async_wait(asio::posix::stream_descriptor::wait_read, asio::as_tuple(asio::use_awaitable));
    auto ended = process->wait(1s);
    if (!sent || !ended || !*ended) co_return;
    const int code = (*ended)->signal != 0 ? 128 + (*ended)->signal : (*ended)->code;
    const std::string last = json{{"status", code}}.dump() + "\n";
    sent = co_await responder.write(last);
  }
};

LabApi::LabApi(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LabApi::LabApi(LabApi&&) noexcept = default;
LabApi::~LabApi() = default;

Result<LabApi> LabApi::serve(asio::io_context& io, DevCluster& cluster) {
  auto impl = std::make_unique<Impl>(io, cluster);
  YADO_TRY(impl->server.listen_unix(cluster.lab_socket(), 0600), "lab");
  return LabApi(std::move(impl));
}

}  // namespace yado::cli
