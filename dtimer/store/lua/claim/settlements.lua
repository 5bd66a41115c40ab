-- Settle the events that the node has finished.
--
-- Reads     before confirms node others settled settled_before settlements wants_echo
-- Sets      busy results settled settled_before

local busy = confirms + others > 0
local results = ''
if busy then
  local wrong
  results, wrong = settle(settlements, confirms, others)
  if wrong then return wrong end
  settled, settled_before = results, before
end
if wants_echo then notify('echo', node) end
