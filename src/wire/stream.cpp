#include "wire/stream.hpp"

#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

namespace yado::wire {
namespace asio = boost::asio;
using boost::system::error_code;
namespace {

constexpr auto as_result = asio::as_tuple(asio::use_awaitable);

/// A span as Asio's ConstBufferSequence (copied by the operations, so it must be cheap to copy).
struct Buffers {
  std::span<const asio::const_buffer> parts;
  auto begin() const { return parts.begin(); }
  auto end() const { return parts.end(); }
};

void set(int fd, int level, int option, int value) { ::setsockopt(fd, level, option, &value, sizeof value); }

}  // namespace

Stream::Stream(Socket socket, std::shared_ptr<asio::ssl::context> tls) : context_(std::move(tls)) {
  if (context_)
    tls_ = std::make_unique<TlsStream>(std::move(socket), *context_);
  else
    plain_ = std::make_unique<Socket>(std::move(socket));
}

asio::awaitable<error_code> Stream::handshake(asio::ssl::stream_base::handshake_type side) {
  if (!tls_) co_return error_code{};
  auto [error] = co_await tls_->async_handshake(side, as_result);
  co_return error;
}

bool Stream::is_alert(const error_code& error) {
  // OpenSSL numbers the peer's alerts from SSL_AD_REASON_OFFSET on (SSL_get_error(3), SSL_alert_type_string(3)).
  return error.category() == asio::error::get_ssl_category() &&
         ERR_GET_REASON(static_cast<unsigned long>(error.value())) >= SSL_AD_REASON_OFFSET;
}

std::string Stream::explain(const error_code& error) const {
  if (error == asio::error::eof || error == asio::ssl::error::stream_truncated) return "the peer closed the connection";
  if (tls_ && error.category() == asio::error::get_ssl_category()) {
    auto* ssl = const_cast<TlsStream&>(*tls_).native_handle();
    if (const long verdict = SSL_get_verify_result(ssl); verdict != X509_V_OK)
      return fmt::format("the peer's certificate is not acceptable: {}", X509_verify_cert_error_string(verdict));
    if (is_alert(error)) return fmt::format("the peer refused: {}", error.message());
  }
  return error.message();
}

std::string Stream::peer_name() const {
  if (!tls_) return {};
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(
      SSL_get1_peer_certificate(const_cast<TlsStream&>(*tls_).native_handle()), &X509_free);
  if (!certificate) return {};
  X509_NAME* subject = X509_get_subject_name(certificate.get());
  const int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (at < 0) return {};
  unsigned char* text = nullptr;
  const int length = ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
  if (length < 0) return {};
  std::string name(reinterpret_cast<char*>(text), static_cast<std::size_t>(length));
  OPENSSL_free(text);
  return name;
}

asio::awaitable<IoResult> Stream::read_some(asio::mutable_buffer buffer) {
  if (tls_) {
    auto [error, bytes] = co_await tls_->async_read_some(buffer, as_result);
    co_return IoResult{error, bytes};
  }
  auto [error, bytes] = co_await plain_->async_read_some(buffer, as_result);
  co_return IoResult{error, bytes};
}

void Stream::read_some(asio::mutable_buffer buffer, std::function<void(error_code, std::size_t)> done) {
  if (tls_)
    tls_->async_read_some(buffer, std::move(done));
  else
    plain_->async_read_some(buffer, std::move(done));
}

asio::awaitable<error_code> Stream::write(std::span<const asio::const_buffer> buffers) {
  const Buffers parts{buffers};
  if (tls_) {
    auto [error, bytes] = co_await asio::async_write(*tls_, parts, as_result);
    co_return error;
  }
  auto [error, bytes] = co_await asio::async_write(*plain_, parts, as_result);
  co_return error;
}

void Stream::shutdown_send() {
  error_code ignored;  // a socket that is gone already needs no shutdown
  socket().shutdown(asio::socket_base::shutdown_send, ignored);
}

void Stream::close() {
  error_code ignored;
  socket().close(ignored);
}

bool Stream::is_open() const { return socket().is_open(); }

bool Stream::is_quiet() const {
  if (!is_open()) return false;
  char byte = 0;
  const auto got = ::recv(const_cast<Socket&>(socket()).native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

Stream::Socket& Stream::socket() { return tls_ ? tls_->next_layer() : *plain_; }
const Stream::Socket& Stream::socket() const { return tls_ ? tls_->next_layer() : *plain_; }

void tune_tcp(Stream::Socket& socket) {
  const int fd = socket.native_handle();
  set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  // Two connected roles may have nothing to say for hours. 15 s + 3 probes of 5 s: no answer for 30 s ends it (tcp(7)).
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 15);
  set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
  // The same for bytes that nobody acknowledges; the kernel's own patience is 15 minutes.
  set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 30'000);
}

}  // namespace yado::wire
