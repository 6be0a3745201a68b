// The pager as a program of its own, for unit tests that have no `yado`.
#include "pager/hook_socket.hpp"
#include "pager/service.hpp"

int main(int count, char** arguments) {
  if (count == 3) return yado::pager::run_service_at(arguments[2], arguments[1]);
  return count == 2 ? yado::pager::run_service(arguments[1]) : 2;
}
