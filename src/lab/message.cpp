// How requests and replies of host_init.hpp lie in a datagram: texts and numbers, each text after its length.

#include <sys/socket.h>

#include <cstring>

#include "lab/host_init.hpp"

namespace yado::lab {
namespace {

constexpr std::size_t most_bytes = 200'000;  // below the default send buffer of a unix socket (212'992)
constexpr std::size_t most_descriptors = 64;

class Writer {
 public:
  void number(std::uint32_t value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof value); }
  void text(const std::string& value) {
    number(static_cast<std::uint32_t>(value.size()));
    bytes += value;
  }
  void texts(const std::vector<std::string>& values) {
    number(static_cast<std::uint32_t>(values.size()));
    for (const std::string& value : values) text(value);
  }
  std::string bytes;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}
  std::uint32_t number() {
    std::uint32_t value = 0;
    if (rest_.size() < sizeof value) return good = false, 0;
    std::memcpy(&value, rest_.data(), sizeof value);
    rest_.remove_prefix(sizeof value);
    return value;
  }
  std::string text() {
    const std::uint32_t size = number();
    if (rest_.size() < size) return good = false, "";
    std::string value(rest_.substr(0, size));
    rest_.remove_prefix(size);
    return value;
  }
  std::vector<std::string> texts() {
    std::vector<std::string> values;
    for (std::uint32_t left = number(); left > 0 && good; --left) values.push_back(text());
    return values;
  }
  bool good = true;

 private:
  std::string_view rest_;
};

Status send_bytes(const os::Fd& socket, const std::string& bytes, const std::vector<int>& descriptors) {
  if (bytes.size() > most_bytes || descriptors.size() > most_descriptors)
    return fail(Errc::invalid_argument, "arguments and environment of {} bytes with {} descriptors are too much",
                bytes.size(), descriptors.size());
  alignas(cmsghdr) char control[CMSG_SPACE(most_descriptors * sizeof(int))] = {};
  iovec data{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    const std::size_t size = descriptors.size() * sizeof(int);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(size);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(size);
    std::memcpy(CMSG_DATA(header), descriptors.data(), size);
  }
  if (::sendmsg(socket.get(), &message, MSG_NOSIGNAL) < 0) return fail_errno("talk to the host's init");
  return {};
}

SpawnRequest read_message(Reader& reader, const SpawnRequest*) {
  SpawnRequest request{reader.texts(), reader.texts(), reader.text(), {}};
  for (std::uint32_t left = reader.number(); left > 0 && reader.good; --left)
    request.targets.push_back(static_cast<int>(reader.number()));
  return request;
}

SpawnReply read_message(Reader& reader, const SpawnReply*) {
  const auto error = static_cast<Errc>(reader.number());
  return {error, reader.text()};
}

}  // namespace

Status send_message(const os::Fd& socket, const SpawnRequest& request, const std::vector<int>& descriptors) {
  Writer writer;
  writer.texts(request.arguments);
  writer.texts(request.environment);
  writer.text(request.directory);
  writer.number(static_cast<std::uint32_t>(request.targets.size()));
  for (const int target : request.targets) writer.number(static_cast<std::uint32_t>(target));
  return send_bytes(socket, writer.bytes, descriptors);
}

Status send_message(const os::Fd& socket, const SpawnReply& reply, const std::vector<int>& descriptors) {
  Writer writer;
  writer.number(static_cast<std::uint32_t>(reply.error));
  writer.text(reply.message);
  return send_bytes(socket, writer.bytes, descriptors);
}

template <class Message>
Result<std::optional<Received<Message>>> receive_message(const os::Fd& socket) {
  std::string bytes(most_bytes, '\0');
  alignas(cmsghdr) char control[CMSG_SPACE(most_descriptors * sizeof(int))];
  iovec data{bytes.data(), bytes.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = 0;
  do got = ::recvmsg(socket.get(), &message, MSG_CMSG_CLOEXEC);
  while (got < 0 && errno == EINTR);
  if (got < 0) return fail_errno("receive from the other end of a lab host");
  Received<Message> received;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    for (std::size_t at = CMSG_LEN(0); at + sizeof(int) <= header->cmsg_len; at += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, reinterpret_cast<const char*>(header) + at, sizeof fd);
      received.descriptors.emplace_back(fd);
    }
  }
  if (got == 0) return std::optional<Received<Message>>{};
  Reader reader(std::string_view(bytes).substr(0, static_cast<std::size_t>(got)));
  received.message = read_message(reader, static_cast<const Message*>(nullptr));
  if (!reader.good || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
    return fail(Errc::corrupt, "a message between lab and host is cut short");
  return std::optional(std::move(received));
}

template Result<std::optional<Received<SpawnRequest>>> receive_message(const os::Fd&);
template Result<std::optional<Received<SpawnReply>>> receive_message(const os::Fd&);

}  // namespace yado::lab
