-- How an event, a lease and a dead letter are stored, in the same forms as dtimer/store/format.py.
-- Scripts write and read the bytes of these values only here, and those of the state of a schedule
-- only in parts/schedule.lua.
--
-- body      '<expires>,<max_retries>[,<mark>[,<flag>...]]|<payload>'. <expires> is in µs since the
--           epoch, or empty. The mark is 'n' if the user chose the id. It is 's<nominal>,<missed>'
--           for an occurrence: its nominal time in µs, and how many missed occurrences it replaces.
--           Any other event has no mark, and an empty one if it has flags: ',3,,t…|'. The first
--           byte of the payload tells its codec; '{' begins JSON
-- flag      an optional fact about an event: one letter and its value, which has no ',' and no '|'.
--           An event without the fact has no flag. Readers skip the flags that they do not know,
--           so a new one needs no new version of the stored forms. This is the list of all flags:
--             f   when the wait began of an event posted with max_wait, in µs. A client posts this
--                 flag without a value
--             t   the trace context of the post, if it is sampled: trace id, span id and trace
--                 flags in 32, 16 and 2 hexadecimal digits
--             z   when the event was first snoozed for a reason, in µs, and that reason: '' if a
--                 handler has asked for it. The flag is removed when the event is retried
-- template  '<max_retries>|<payload>' of the occurrences of a schedule
-- lease     '<token>,<attempt>,<due>,<flags>,<incarnation>'. The flags are 'c' for cancelled, and
--           's' for an occurrence
-- letter    '<attempt>,<reason>,<length of error>|<error><body>', a dead letter
-- node      '<joined>,<version>|<JSON>', the registration of a node: when it joined, in µs, the latest
--           version of the stored forms that it knows, and its description. The JSON has id, host, pid, version (of dtimer) and threads (how many it may have). It has used,
--           deaf, stuck, restarts, rss (bytes) and rtt (µs) if they are not zero
-- hour      '<hour>;<row>...', the history of one hour: its number since the epoch, and rows
-- row       '<minute>,<minutes>,<posted>,<started>,<confirmed>,<retried>,<died>,<scheduled>,
--           <in flight>,<overdue>,<dead>,<p50>,<p99>;'. The minute is that of the hour. <minutes> is
--           for how many minutes the first five numbers count. p50 and p99 are the buckets of
--           lateness up to which half and 99 % of the deliveries are counted; -1 for none
-- end       '<minute>;<totals>;<late>', the end of the history: the minute in which the last row was
--           written, since the epoch, and the totals and the buckets of lateness at that time, each
--           joined by ','
--
-- A script has those of these functions that it needs (dtimer/store/scripts.py), because creating
-- one takes half a percent of a claim. They take and return single values: a table for each event
-- would make a claim slower by an eighth.

-- Return expiry, max_retries and the first character of the mark, if there is one; nil if dtimer
-- has not written the body.
local function parse_body(body)
  local expires, max_retries, after, mark = string.match(
    body or '', '^(%d*),(%d+)([,|])([ns]?)')
  if not expires or #expires > 17 or #max_retries > 7 then return nil end
  if after == '|' or mark == '' then return tonumber(expires), tonumber(max_retries) end
  return tonumber(expires), tonumber(max_retries), mark
end

-- Return the body of an event that is posted. Its expiry may be relative: '+<µs>' from now.
local function posted_body(text)
  -- The byte 43 is the plus sign.
  if string.byte(text) ~= 43 then return text end
  local after, rest = string.match(text, '^%+(%d+)(.*)$')
  return after and digits(NOW + after) .. rest or text
end

-- Return the body of an event posted with max_wait, whose wait began at `first`.
local function with_first(body, first)
  return (string.gsub(body, '^([^|]*),f([,|])', '%1,f' .. digits(first) .. '%2', 1))
end

-- Return when the wait began to which an event belongs; nil if it was posted without max_wait.
local function first_of(body)
  local first = string.match(body or '', '^[^|]*,f(%d+)[,|]')
  return first and #first <= 17 and tonumber(first) or nil
end

-- Return the body of an occurrence that replaces no missed ones.
local function occurrence_body(expires, max_retries, nominal, payload)
  return expires .. ',' .. max_retries .. ',s' .. nominal .. ',0|' .. payload
end

-- Return the body of an occurrence with another expiry and another number of missed ones.
local function with_missed(body, expires, missed)
  return (string.gsub(
    body, '^%d*(,%d+,s%d+),%d+', expires .. '%1,' .. digits(missed), 1))
end

-- Return a body with another payload; nil for nil.
local function with_payload(body, payload)
  local head = string.match(body or '', '^[^|]*|')
  return head and head .. payload
end

-- Return the body of a dead letter that is revived: without its expiry, and without the wait of an
-- event posted with max_wait.
local function revived_body(body)
  body = string.gsub(body, '^%d*,', ',', 1)
  return (string.gsub(body, '^([^|]*),f%d+([,|])', '%1%2', 1))
end

-- Return the body of an event that is snoozed now; nil if it is to stay as it is. The event has
-- started, so the wait of an event posted with max_wait is over.
local function snoozed_body(body, reason)
  local head, start = string.match(body, '^(%d*,%d+[^|]*)()|')
  if not head or string.match(head, ',z%d+([%l_]*)') == reason then return nil end
  head = string.gsub(string.gsub(head, ',z%d+[%l_]*', ''), ',f%d+', '')
  if not string.find(head, '^%d*,%d+,') then head = head .. ',' end
  return head .. ',z' .. digits(NOW) .. reason .. string.sub(body, start)
end

-- Return a body without its first snooze; nil if it has none.
local function without_snooze(body)
  local head, start = string.match(body, '^(%d*,%d+,[^|]*)()|')
  if not head or not string.find(head, ',z%d') then return nil end
  return (string.gsub(head, ',z%d+[%l_]*', '')) .. string.sub(body, start)
end

-- Return max_retries and the payload of a template; nil if dtimer has not written it.
local function parse_template(template)
  local max_retries, start = string.match(template, '^(%d+)|()')
  if max_retries then return max_retries, string.sub(template, start) end
end

-- Return a lease. The second result is its part before the flags, which the reply to a claim
-- repeats.
local function write_lease(token, attempt, due, flags, node)
  local head = token .. ',' .. attempt .. ',' .. due .. ','
  return head .. flags .. ',' .. node, head
end

-- Return token, attempt, due time, whether it was cancelled, incarnation and flags of a lease; nil
-- if there is none or dtimer has not written it.
local function parse_lease(lease)
  local token, attempt, due, flags, node =
    string.match(lease or '', '^(%d+),(%d+),(%d+),([cs]*),(.*)$')
  if not token or #attempt > 8 or #token > 16 or #due > 17 then return nil end
  local cancelled = string.find(flags, 'c', 1, true) ~= nil
  return token, tonumber(attempt), due, cancelled, node, flags
end

-- Finds token and flags of a lease, for a caller that compares the token with a known one.
local TOKEN_AND_FLAGS = '^(%d+),%d+,%d+,(%a*),'

-- Return a dead letter.
local function write_letter(attempt, reason, err, body)
  return attempt .. ',' .. reason .. ',' .. #err .. '|' .. err .. body
end

-- The reasons of dead letters, each between two spaces. A letter may have another one if a later
-- version has written it.
local REASONS = ' failed lease_lost expired corrupt payload_missing buried unknown_kind unreadable '

-- Return the name of the total that counts the dead letters with a reason. The names are a closed
-- set, so a reason that is not known is counted as 'other'.
local function died_total(reason)
  local known = string.find(REASONS, ' ' .. reason .. ' ', 1, true)
  return 'died:' .. (known and reason or 'other')
end

-- Return the reason of a dead letter; nil if dtimer has not written the letter.
local function reason_of_letter(letter)
  return string.match(letter, '^%d+,([%w_]+),')
end

-- Return the body in a dead letter; '' if dtimer has not written the letter.
local function body_of_letter(letter)
  local length, start = string.match(letter, '^%d+,[%w_]+,(%d+)|()')
  return length and string.sub(letter, start + tonumber(length)) or ''
end

-- Return an error reply if this dtimer does not know the version of the namespace, else nil. Every
-- script that writes calls this before its first write: an older version would misread the data of a
-- later one.
local function check_version(version)
  if version and version ~= SCHEMA and version ~= PREVIOUS then
    return redis.error_reply('DTSCHEMA the namespace has the schema version ' .. version
      .. ', and this dtimer knows version ' .. SCHEMA .. ': upgrade it')
  end
end

-- Return the registration of a node.
local function write_registration(joined, description)
  return joined .. ',' .. SCHEMA .. '|' .. description
end

-- In µs.
local MINUTE = 60000000

-- Return the fields of the totals that the history counts. Their sums are the counts of a row, and
-- that of dead letters has one for each reason.
local function history_totals()
  local fields = {'n:posted', 'n:started', 'n:confirmed', 'n:retried'}
  for reason in string.gmatch(REASONS .. 'other', '%S+') do
    fields[#fields + 1] = 'n:' .. died_total(reason)
  end
  return fields
end

-- Return the end of the history.
local function write_history_end(minute, totals, late)
  local texts = {{}, {}}
  for i, total in ipairs(totals) do texts[1][i] = digits(total) end
  for i, count in ipairs(late) do texts[2][i] = digits(count) end
  return digits(minute) .. ';' .. table.concat(texts[1], ',') .. ';' .. table.concat(texts[2], ',')
end

-- Return the minute of the last row, the totals and the buckets of lateness; nil if there is none or
-- dtimer has not written it.
local function parse_history_end(text)
  local minute, totals, late = string.match(text or '', '^(%d+);([%d,]*);([%d,]*)$')
  if not minute or #minute > 12 or #text > 4000 then return nil end
  local numbers = {{}, {}}
  for total in string.gmatch(totals, '%d+') do numbers[1][#numbers[1] + 1] = tonumber(total) end
  for count in string.gmatch(late, '%d+') do numbers[2][#numbers[2] + 1] = tonumber(count) end
  return tonumber(minute), numbers[1], numbers[2]
end

-- Return the bucket up to which a share of the counts is counted; -1 if there are none.
local function share_below(counts, share)
  local all, seen = 0, 0
  for _, count in ipairs(counts) do all = all + count end
  if all == 0 then return -1 end
  for i, count in ipairs(counts) do
    seen = seen + count
    if seen >= share * all then return i - 1 end
  end
end

-- Return the history of an hour with one more row. `grown` has what the totals have grown by, and
-- `present` has the rest of the row. An hour of another day is replaced, and so are too many rows:
-- they come of a clock that was set back.
local function add_history_row(text, hour, minute, minutes, grown, present)
  local died = 0
  for i = 5, #grown do died = died + grown[i] end
  local row = {minute % 60, math.min(math.max(minutes, 1), 1440)}
  for i = 1, 4 do row[#row + 1] = grown[i] end
  row[#row + 1] = died
  for _, number in ipairs(present) do row[#row + 1] = number end
  for i, number in ipairs(row) do row[i] = digits(number) end
  local begin = digits(hour) .. ';'
  local kept = text and #text < 20000 and string.sub(text, 1, #begin) == begin and text or begin
  return kept .. table.concat(row, ',') .. ';'
end
